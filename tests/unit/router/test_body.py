"""Where bodies are read: long ones beside the event loop, one at a time."""

from __future__ import annotations

import json
import threading

import pytest
from starlette.requests import Request
from starlette.types import Message

from router.api.http.body import MediaTypeError, check_json_type, read_json
from tidepipe_common.aside import INLINE_BYTES

JSON = (b"content-type", b"application/json")


async def _thread_that_reads(body: object) -> threading.Thread:
    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    request = Request({"type": "http", "method": "POST", "headers": [JSON]}, receive)

    def make(value: object) -> threading.Thread:
        assert value == body
        return threading.current_thread()

    return await read_json(request, make)


@pytest.mark.parametrize(("characters", "beside"), [(10, False), (INLINE_BYTES, True)])
async def test_long_bodies_are_read_beside_the_loop(characters: int, beside: bool) -> None:
    thread = await _thread_that_reads({"prompt": "a" * characters})
    assert (thread is not threading.current_thread()) == beside
    if beside:
        assert thread is await _thread_that_reads([1] * INLINE_BYTES)


def test_a_body_says_that_it_is_json_in_utf_8() -> None:
    for good in (
        *("application/json", "Application/JSON ; Charset=UTF-8", 'application/json; charset="utf-8"; a=b'),
        *("application/vnd.api+json", "application/json;"),
    ):
        check_json_type(good)
    for bad in (
        *(None, "", "json", "text/plain", "text/plain; application/json", "application/json, text/plain"),
        *("application/json; charset=utf-16", "application/json; charset=utf-8; charset=latin-1"),
        "application/json" + ";  " * 5000 + "!",
    ):
        with pytest.raises(MediaTypeError, match="JSON"):
            check_json_type(bad)
