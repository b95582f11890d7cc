"""Numbers that another process tells, looked at before anything is reckoned with them.

A NaN goes through every mean and comparison that meets it, and stays. So no number comes to what decides
that is not finite and in range: whoever decodes a message asks here first, and refuses the message.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

LARGEST = 1e18
"""Of what any message tells: seconds, bytes, query-key pairs."""

_REAL = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


def strange_number(message: Message, signed: Container[str] = ()) -> str:
    """The first number of a message, or of a message within it, that cannot be, with its name; "" if all can.

    signed: names of fields that may be below 0. Lists of messages are left to who reads them.
    """
    told = _told(message)
    for name in told.numbers:
        number = getattr(message, name)
        # Not so for NaN either. What is not said is 0.
        if not 0.0 <= number <= LARGEST and not (name in signed and -LARGEST <= number <= LARGEST):
            return f"{name} {number:g}"
    for name in told.lists:
        low = -LARGEST if name in signed else 0.0
        for number in getattr(message, name):
            if not low <= number <= LARGEST:
                return f"{name} {number:g}"
    for name in told.within:
        if message.HasField(name) and (fault := strange_number(getattr(message, name), signed)):
            return fault
    return ""


class _Told(NamedTuple):
    """What there is to look at in a kind of message: names of numbers, of lists of numbers, of messages."""

    numbers: tuple[str, ...]
    lists: tuple[str, ...]
    within: tuple[str, ...]


_known: dict[type[Message], _Told] = {}
"""Every step's report is looked at, and asking descriptors takes most of the time."""


def _told(message: Message) -> _Told:
    kind = type(message)
    if (known := _known.get(kind)) is not None:
        return known
    fields = message.DESCRIPTOR.fields
    real = [one for one in fields if one.cpp_type in _REAL]
    told = _known[kind] = _Told(
        tuple(one.name for one in real if not one.is_repeated),
        tuple(one.name for one in real if one.is_repeated),
        tuple(
            one.name
            for one in fields
            if one.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE and not one.is_repeated
        ),
    )
    return told


def rising(values: Iterable[float], high: float = LARGEST) -> bool:
    """True if all are from 0 to `high`, and none is below the one before it."""
    before = 0.0
    for value in values:
        if not before <= value <= high:
            return False
        before = value
    return True
