"""Small conversions from and to protobuf that all clients need."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tidepipe.client.types import ModelInfo
from tidepipe.v1 import inference_pb2 as pb
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.text.text import is_text

_Message = TypeVar("_Message", bound=Message)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number in [-2^31, 2^31)",
    FieldDescriptor.CPPTYPE_INT64: "a whole number in [-2^63, 2^63)",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number in [0, 2^32)",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number in [0, 2^64)",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "a text in valid Unicode",
}
LONGEST_S = 1e9
"""No deadline is further away; gRPC cannot count much further."""


def message_of(kind: type[_Message], **fields: Any) -> _Message:
    """The message with these fields; InvalidRequestError names the first one that it cannot hold."""
    for name, value in fields.items():
        field = kind.DESCRIPTOR.fields_by_name[name]
        texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else ()
        try:
            if not all(is_text(text) for text in texts):
                raise ValueError
            kind(**{name: value})
        except (TypeError, ValueError, OverflowError, AttributeError):
            raise InvalidRequestError(
                f"{name} must be {_RANGES.get(field.cpp_type or 0, 'of another type')}", name
            ) from None
    return kind(**fields)


def check_seconds(name: str, value: Any) -> float:
    """Seconds as they are, but no more than LONGEST_S; InvalidRequestError if they are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise InvalidRequestError(f"{name} must be a number of seconds", name)
    return float(max(-LONGEST_S, min(value, LONGEST_S)))


def models_from_wire(reply: pb.ListModelsResponse) -> list[ModelInfo]:
    """Protobuf to plain values."""
    return [
        ModelInfo(
            name=model.name,
            context_length=model.context_length,
            vocab_size=model.vocab_size,
            eos_token_ids=tuple(model.eos_token_ids),
            fingerprint=model.fingerprint,
            alias_of=model.alias_of,
            adapter_of=model.adapter_of,
            ttft_ms=model.ttft_ms,
            tpot_ms=model.tpot_ms,
        )
        for model in reply.models
    ]
