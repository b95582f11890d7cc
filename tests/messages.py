"""Hypothesis strategies for protobuf messages of any kind, sensible or not."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

DEEPEST = 4
LONGEST = 4
_TEXTS = st.one_of(
    st.sampled_from(["instance-0", "td-pipe", "auto", "127.0.0.1:1", "{}"]), st.text(max_size=20)
)


def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    edges = st.sampled_from([low, high, 0, 1, 2])
    return st.one_of(st.integers(max(low, -5), min(high, 300)), edges, st.integers(low, high))


_KINDS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: _integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: _integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: _integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: _integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.one_of(st.floats(0, 2), st.floats()),
    FieldDescriptor.CPPTYPE_FLOAT: st.one_of(st.floats(0, 2, width=32), st.floats(width=32)),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-1, 9),
}


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Message:
    """A message with few or many of its fields set, to anything that their types can say."""
    message: Message = GetMessageClass(descriptor)()
    percent = draw(st.sampled_from((10, 50)))
    for field in descriptor.fields:
        if draw(st.integers(0, 99)) >= percent or (field.message_type is not None and depth >= DEEPEST):
            continue
        place = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            place.update(draw(st.dictionaries(_value(key, depth), _value(value, depth), max_size=LONGEST)))
        elif field.is_repeated:
            place.extend(draw(st.lists(_value(field, depth), max_size=LONGEST)))
        elif field.message_type is not None:
            place.CopyFrom(draw(messages(field.message_type, depth + 1)))
        else:
            setattr(message, field.name, draw(_value(field, depth)))
    return message


def spoiled(good: Message) -> st.SearchStrategy[Message]:
    """The good message, over which one of any kind is laid."""

    def lay(other: Message) -> Message:
        message: Message = type(good)()
        message.CopyFrom(good)
        message.MergeFrom(other)
        return message

    return messages(good.DESCRIPTOR).map(lay)


def _value(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, depth + 1)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=32)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _TEXTS
    return _KINDS[field.cpp_type]
