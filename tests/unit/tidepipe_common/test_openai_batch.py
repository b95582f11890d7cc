"""Batch lines: every line becomes an item or an error line, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.errors import InvalidRequestError, UnavailableError
from tidepipe_common.openai.batch import (
    BatchItem,
    BatchLineError,
    error_line,
    failure_line,
    parse_line,
    response_line,
)

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": [1, 2]}}


def line(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (GOOD | changes).items() if v is not ...}).encode()


def response(**fields: Any) -> bytes:
    return line(url="/v1/responses", body={"input": "a", **fields})


def test_a_good_line_and_its_outcomes() -> None:
    item = parse_line(b"\xef\xbb\xbf" + line() + b"\r\n", 1, "req-1")
    assert isinstance(item, BatchItem)
    assert (item.custom_id, item.request.request_id, item.request.prompt) == ("a", "req-1", (1, 2))
    assert json.loads(response_line("batch_req_1", item, {"choices": []})) == {
        "id": "batch_req_1",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req-1", "body": {"choices": []}},
        "error": None,
    }
    failed = json.loads(failure_line("batch_req_1", item, UnavailableError("no instance")))
    assert failed["response"]["status_code"] == 503
    assert failed["error"] == {"code": "service_unavailable", "message": "no instance"}


def test_what_fails_as_it_runs_is_named_as_its_api_has_it() -> None:
    item = parse_line(response(), 1, "r")
    assert isinstance(item, BatchItem)
    failed = json.loads(failure_line("b", item, InvalidRequestError("messages are too long", "messages")))
    assert failed["response"]["body"]["error"]["param"] == "input"


@pytest.mark.parametrize(
    ("raw", "custom_id", "code", "message"),
    [
        (b"", None, "invalid_json", "line 3: empty"),
        (b"{", None, "invalid_json", "line 3: not JSON"),
        (b"\xff{}", None, "invalid_json", "line 3: not UTF-8: byte 0 is 0xff"),
        (
            line(body={"prompt": "a", "temperature": float("nan")}),
            None,
            "invalid_json",
            "NaN is not a JSON number",
        ),
        (line(body={"n": 9}).replace(b"9", b"9" * 5000), None, "invalid_json", "not usable JSON"),
        (b"[" * 60_000, None, "invalid_json", "nested too deeply"),
        (b"[1]", None, "invalid_line", "must be a JSON object, got a list"),
        (line(custom_id=...), None, "invalid_custom_id", "custom_id must be a non-empty string, got nothing"),
        (line(custom_id=5), None, "invalid_custom_id", "got 5"),
        (line(custom_id="a\udc80"), None, "invalid_custom_id", "custom_id is not valid Unicode"),
        (line(body={"prompt": "a", "user": "\ud800"}), "a", "invalid_value", "user is not valid Unicode"),
        (line(body={"prompt": "a", "x": {"\ud800": 1}}), "a", "invalid_value", "x is not valid Unicode"),
        (line(body={"temperature": 7}).replace(b"7", b"1e400"), None, "invalid_json", "1e400 is too large"),
        (line()[:-1] + b', "url": "/v1/completions"}', None, "invalid_json", "has the name 'url' twice"),
        (line(body=[[]] * 5).replace(b"[]", b"[" * 101 + b"]" * 101), None, "invalid_json", "too deeply"),
        (line(extra=1), "a", "unknown_field", "unknown field 'extra'"),
        (line(method="GET"), "a", "invalid_method", "method must be 'POST', got 'GET'"),
        (line(url="/v1/moderations"), "a", "invalid_url", "url must be one of /v1/chat/completions, "),
        (line(url=["x"]), "a", "invalid_url", "url must be one of"),
        (line(body=...), "a", "invalid_line", "body is required"),
        (line(body=None), "a", "invalid_value", "line 3: the body must be a JSON object, got null"),
        (line(body={"prompt": 1}), "a", "invalid_value", "line 3: prompt must be a string or a list"),
        (line(body={"prompt": "a", "stream": True}), "a", "invalid_value", "cannot be streamed"),
        (line(url="/v1/embeddings", body={"input": 1}), "a", "invalid_value", "line 3: input must be"),
        (response(stream=True), "a", "invalid_value", "cannot be streamed"),
        (response(background=True), "a", "invalid_value", "background: all of a batch is"),
        (response(store=True), "a", "invalid_value", "send store: false"),
        (response(previous_response_id="resp_1"), "a", "invalid_value", "send the conversation"),
        (response(input=[{"type": "item_reference", "id": "msg_1"}]), "a", "invalid_value", "item_reference"),
    ],
)
def test_bad_lines(raw: bytes, custom_id: str | None, code: str, message: str) -> None:
    error = parse_line(raw, 3, "req-3")
    assert isinstance(error, BatchLineError)
    assert (error.custom_id, error.code) == (custom_id, code)
    assert message in error.message
    written = json.loads(error_line("batch_req_3", error, "req-3"))
    assert written["custom_id"] == custom_id
    assert written["error"] == {"code": code, "message": error.message}
    assert written["response"]["status_code"] == 400


mutated = st.tuples(st.integers(0, len(line()) - 1), st.integers(0, 255)).map(
    lambda change: line()[: change[0]] + bytes([change[1]]) + line()[change[0] + 1 :]
)


@given(
    st.one_of(
        st.binary(max_size=50), mutated, st.text("\ud800a", min_size=1).map(lambda s: line(custom_id=s))
    )
)
def test_no_line_is_lost(raw: bytes) -> None:
    outcome = parse_line(raw, 1, "r")
    if isinstance(outcome, BatchItem):
        written = response_line("b", outcome, {"text": "世\x85\u2028\u2029"})
        assert json.loads(written)["response"]["body"]["text"] == "世\x85\u2028\u2029"
    else:
        written = error_line("b", outcome, "r")
    assert written.endswith(b"\n") and len(written.decode().splitlines()) == 1
    assert json.loads(written)["custom_id"] == outcome.custom_id
