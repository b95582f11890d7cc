"""The body of an HTTP request, bounded and strictly JSON; and the end of its connection."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from tidepipe_common.aside import ROOM, Share, beside
from tidepipe_common.errors import InvalidRequestError, OverloadedError, TidePipeError
from tidepipe_common.limits import MAX_REQUEST_BYTES
from tidepipe_common.text.json_text import parse_json

MAX_DISCARDED_BYTES = 8 * MAX_REQUEST_BYTES
"""A larger body is read to its end and thrown away, within this limit: who is still sending when the
connection closes gets to see a broken connection, and not why."""
BODY_TIMEOUT_S = 60.0

_Read = TypeVar("_Read")

_PARAMETER = r""";[ \t]*(?:[^\s;="]+=(?:[^\s;"]*|"[^"]*")[ \t]*)?"""
_JSON_TYPE = re.compile(rf"application/(?:[a-z0-9.-]+\+)?json[ \t]*((?:{_PARAMETER})*)", re.IGNORECASE)
_CHARSET = re.compile(r'charset="?([^";\s]*)', re.IGNORECASE)
_UTF_8 = ("utf-8", "utf8")


class MediaTypeError(TidePipeError):
    """The body is of another type than this path accepts (HTTP 415)."""


class BodyTooLargeError(TidePipeError):
    """The body is longer than this path accepts (HTTP 413)."""

    def __init__(self, limit: int = MAX_REQUEST_BYTES) -> None:
        super().__init__(f"the body is too large: at most {limit} bytes are accepted")


async def read_json(
    request: Request, make: Callable[[object], _Read], most: int = MAX_REQUEST_BYTES
) -> _Read:
    """What `make` makes of the decoded body of at most so many bytes, beside the event loop if it is long.

    BodyTooLargeError, MediaTypeError, InvalidRequestError if it is not JSON, or OverloadedError: too much
    comes in already.
    The type matters: a form, which any page may send anywhere, has another one.
    """
    check_json_type(request.headers.get("content-type"))
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > MAX_DISCARDED_BYTES:
        raise BodyTooLargeError(most)
    with ROOM.share() as share:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                raw = await _read(request, share, most)
        except TimeoutError:
            raise InvalidRequestError(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
        return await beside(len(raw), functools.partial(_made, raw, make))


def check_json_type(declared: str | None) -> None:
    """MediaTypeError if a body that says so of itself is not JSON in UTF-8, or says nothing."""
    fitting = _JSON_TYPE.fullmatch(declared or "")
    if fitting is None:
        got = "none" if declared is None else declared[:100]
        raise MediaTypeError(f"send the body as JSON, with content-type: application/json, not {got}")
    for charset in _CHARSET.findall(fitting[1]):
        if charset.lower() not in _UTF_8:
            raise MediaTypeError(f"JSON is sent in UTF-8, not {charset[:100]}")


def _made(raw: bytes, make: Callable[[object], _Read]) -> _Read:
    return make(parse_json(raw, "the body"))


async def _read(request: Request, share: Share, most: int) -> bytes:
    raw = bytearray()
    refusal: TidePipeError | None = None
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_DISCARDED_BYTES:
            raise refusal or BodyTooLargeError(most)
        if refusal is None:
            refusal = _refusal(share, size, most)
        if refusal is None:
            raw += chunk
        elif raw:
            raw.clear()
            share.leave()
    if refusal is not None:
        raise refusal
    return bytes(raw)


def _refusal(share: Share, size: int, most: int) -> TidePipeError | None:
    """Why a body of `size` bytes so far will not be read."""
    if size > most:
        return BodyTooLargeError(most)
    try:
        share.grow(size)
    except OverloadedError as error:
        return error
    return None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; give it up, silently, when the client disconnects. The body must have been read."""
    async with asyncio.TaskGroup() as group:
        working = group.create_task(work)
        listening = group.create_task(_until_disconnected(receive))
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        listening.cancel()


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
