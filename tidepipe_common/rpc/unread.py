"""Large messages that came in over gRPC: read beside the event loop; not at all if they have too many fields.

gRPC's library reads a message on the event loop, before anybody knows who sent it. An empty field takes two
bytes, and 30 times as much once it is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tidepipe_common.aside import INLINE_BYTES, ROOM, beside
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_CALL_FIELDS, MAX_SERVICE_FIELDS

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_SHIFT = 63


class Unread:
    """A message as it came."""

    def __init__(self, raw: bytes, parse: Callable[[bytes], Any]) -> None:
        self._raw = raw
        self._parse = parse

    async def read(self, *, counted: bool) -> Any:
        """The message. counted: a client's, which may have MAX_CALL_FIELDS fields only; else
        MAX_SERVICE_FIELDS.

        InvalidRequestError if it is none, OverloadedError if too much waits to be read.
        """
        with ROOM.share() as share:
            share.grow(len(self._raw))
            return await beside(len(self._raw), partial(self._read, counted))

    def _read(self, counted: bool) -> Any:
        if counted or len(self._raw) > INLINE_BYTES:
            most = MAX_CALL_FIELDS if counted else MAX_SERVICE_FIELDS
            check_fields(self._raw, _descriptor(self._parse), most)
        raw, self._raw = self._raw, b""
        return read_message(self._parse, raw)


def read_message(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    """The message. InvalidRequestError if the bytes are none: left to itself, gRPC takes that for a defect of
    this process, UNKNOWN with a traceback."""
    try:
        return parse(raw)
    except Exception as error:
        descriptor = _descriptor(parse)
        name = "message of this call" if descriptor is None else descriptor.full_name
        raise InvalidRequestError(
            f"the request's bytes are no {name} ({type(error).__name__}); is the caller of another version?"
        ) from None


def _descriptor(parse: Callable[[bytes], Any]) -> Descriptor | None:
    """Of the message that a parser makes, if it is protobuf's own."""
    return getattr(getattr(parse, "__self__", None), "DESCRIPTOR", None)


def unread(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A deserializer that reads small messages, and leaves large ones, and what is none, as they are."""

    def read(raw: bytes) -> Any:
        if len(raw) <= INLINE_BYTES:
            with contextlib.suppress(Exception):  # said in `Unread.read`, to who may call
                return parse(raw)
        return Unread(raw, parse)

    return read


def check_fields(raw: bytes, descriptor: Descriptor | None, most: int = MAX_CALL_FIELDS) -> None:
    """Raise InvalidRequestError if the message has more fields, or none that a parser would take."""
    try:
        _count(raw, descriptor, most)
    except IndexError:
        raise InvalidRequestError("the message is cut in the middle of a field") from None


def _count(raw: bytes, descriptor: Descriptor | None, most: int) -> None:
    end, position, count = len(raw), 0, 0
    inside: list[tuple[int, Descriptor | None]] = []  # where messages around this one end, and what they are
    while True:
        while position == end and inside:
            end, descriptor = inside.pop()
        if position == end:
            return
        count += 1
        if count > most:
            raise InvalidRequestError(f"the message may have {most} fields, at all levels, and has more")
        tag, position = _varint(raw, position)
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(raw, position)
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        elif kind == _BYTES:
            size, position = _varint(raw, position)
            field = None if descriptor is None else descriptor.fields_by_number.get(tag >> 3)
            if field is not None and field.type == FieldDescriptor.TYPE_MESSAGE:
                inside.append((end, descriptor))
                end, descriptor = position + size, field.message_type
                if end > inside[-1][0]:
                    raise IndexError
            else:
                position += size
        else:
            raise InvalidRequestError(f"the message has a field of the unknown kind {kind}")
        if position > end:
            raise IndexError


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """The number there, and where it ends."""
    value = shift = 0
    while True:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > _MAX_SHIFT:
            raise InvalidRequestError("the message has a number of more than 64 bits")
