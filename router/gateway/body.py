"""Reads a request's body: bounded, and strictly JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from common.errors import InvalidRequestError, TidePipeError
from common.json_text import parse_json
from common.limits import MAX_REQUEST_BYTES

MAX_DISCARDED_BYTES = 8 * MAX_REQUEST_BYTES
"""A larger body is read to its end and thrown away, within this limit: who is still sending when the
connection closes gets to see a broken connection, and not why."""
BODY_TIMEOUT_S = 60.0

INLINE_BYTES = 64 * 1024
"""Longer bodies are read in a thread, so that the streams of others go on meanwhile."""

_Read = TypeVar("_Read")
_LARGE = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
"""One at a time, in the order in which they came: what a body becomes is many times larger than it."""

JSON_TYPE = re.compile(r"application/([a-z0-9.-]+\+)?json", re.IGNORECASE)


class MediaTypeError(TidePipeError):
    """The body is of another type than this path accepts (HTTP 415)."""


class BodyTooLargeError(TidePipeError):
    """The body is longer than this path accepts (HTTP 413)."""

    def __init__(self, limit: int = MAX_REQUEST_BYTES) -> None:
        super().__init__(f"the body is too large: at most {limit} bytes are accepted")


async def read_json(request: Request, make: Callable[[object], _Read]) -> _Read:
    """What `make` makes of the decoded body, beside the event loop if it is long.

    BodyTooLargeError, MediaTypeError, or InvalidRequestError if it is not JSON.
    The type matters: a form, which any page may send anywhere, has another one.
    """
    declared_type = request.headers.get("content-type")
    if declared_type is not None and not JSON_TYPE.fullmatch(declared_type.partition(";")[0].strip()):
        raise MediaTypeError(
            f"send the body as JSON, with content-type: application/json, not {declared_type[:100]}"
        )
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > MAX_DISCARDED_BYTES:
        raise BodyTooLargeError
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await _read(request)
    except TimeoutError:
        raise InvalidRequestError(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None

    def read() -> _Read:
        return make(parse_json(raw, "the body"))

    if len(raw) <= INLINE_BYTES:
        return read()
    return await asyncio.get_running_loop().run_in_executor(_LARGE, read)


async def _read(request: Request) -> bytes:
    raw = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_REQUEST_BYTES:
            raw += chunk
        elif size > MAX_DISCARDED_BYTES:
            raise BodyTooLargeError
        else:
            raw.clear()
    if size > MAX_REQUEST_BYTES:
        raise BodyTooLargeError
    return bytes(raw)
