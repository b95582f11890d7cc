"""Protobuf messages as plain values, for `--json` and views, as people write them."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_UNSPECIFIED = {"phase": "idle"}
"""What no value means, of the enums where it means something."""


def plain(message: Message) -> dict[str, Any]:
    """All fields but optional ones that are not set.

    Numbers are numbers, 64-bit ones too (protobuf's own JSON makes strings of them); values of enums are
    words, without their prefix: PHASE_PREFILL is `prefill`.
    """
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    return {
        field.name: _value(field, getattr(message, field.name))
        for field in fields
        if not field.has_presence or message.HasField(field.name)
    }


def _value(field: FieldDescriptor, value: Any) -> Any:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        inner = message.fields_by_name["value"]
        return {key: _one(inner, value[key]) for key in value}
    return [_one(field, item) for item in value] if field.is_repeated else _one(field, value)


def _one(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in field.enum_type.name).lstrip("_")
        known = field.enum_type.values_by_number.get(value)
        name = str(value) if known is None else known.name.removeprefix(f"{prefix}_").lower()
        return _UNSPECIFIED.get(prefix.lower(), name) if name == "unspecified" else name
    return value
