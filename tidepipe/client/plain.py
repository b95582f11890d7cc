"""Protobuf messages as plain values, for `--json` and views, as people write them, or as dataclasses."""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_UNSPECIFIED = {"phase": "idle"}
"""What no value means, of the enums where it means something."""

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Value = TypeVar("_Value", bound="DataclassInstance")


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


def typed(kind: type[_Value], message: Message) -> _Value:
    """The message as a dataclass: each of its fields from the message's field of that name.

    Repeated fields are tuples, messages dataclasses, optional ones that are not set None. An enum's member is
    the one whose value is the word that `plain` has; of a newer contract's words the first member stands in.
    """
    hints: dict[str, Any] = _fields(kind)
    return kind(**{name: _typed(hint, message, name) for name, hint in hints.items()})


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _typed(hint: Any, message: Message, name: str) -> Any:
    value = getattr(message, name)
    if isinstance(hint, UnionType):
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
        if not message.HasField(name):
            return None
    if typing.get_origin(hint) is tuple:
        return tuple(_typed_one(typing.get_args(hint)[0], item) for item in value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        fields: Any = message.DESCRIPTOR.fields_by_name
        word = _one(fields[name], value)
        return next((member for member in hint if member.value == word), next(iter(hint)))
    return _typed_one(hint, value)


def _typed_one(hint: Any, value: Any) -> Any:
    return typed(hint, value) if isinstance(value, Message) else value


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
