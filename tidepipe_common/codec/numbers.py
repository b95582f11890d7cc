"""Numbers that another process tells, looked at before anything is reckoned with them.

A NaN goes through every mean and comparison that meets it, and stays. So no number comes to what decides
that is not finite and in range: whoever decodes a message asks here first, and refuses the message.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

LARGEST = 1e18
"""Of what any message tells: seconds, bytes, query-key pairs."""

_REAL = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


def strange_number(message: Message, signed: Container[str] = ()) -> str:
    """The first number of a message, or of a message within it, that cannot be, with its name; "" if all can.

    signed: names of fields that may be below 0. Lists of messages are left to who reads them.
    """
    for field, value in message.ListFields():
        if field.cpp_type in _REAL:
            values: Iterable[float] = value if field.is_repeated else (value,)
            low = -LARGEST if field.name in signed else 0.0
            for number in values:
                if not low <= number <= LARGEST:  # not so for NaN either
                    return f"{field.name} {number:g}"
        elif (
            field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
            and not field.is_repeated
            and (fault := strange_number(value, signed))
        ):
            return fault
    return ""


def rising(values: Iterable[float], high: float = LARGEST) -> bool:
    """True if all are from 0 to `high`, and none is below the one before it."""
    before = 0.0
    for value in values:
        if not before <= value <= high:
            return False
        before = value
    return True
