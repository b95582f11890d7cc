"""Response bodies and streams."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tidepipe_common.errors import (
    InvalidRequestError,
    ModelError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from tidepipe_common.openai.answers import ChatAnswer, ChatChunk, CompletionAnswer, CompletionChunk, Error
from tidepipe_common.openai.failures import error_response
from tidepipe_common.openai.responses import ResponseContext, response_body, response_stream, sse
from tidepipe_common.types.request import Answer, ChatTurn, GenerationRequest, Prompt, Usage
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams, TokenLogprob

TOKENS = {1: b"Hi", 2: " 世".encode(), 3: b"\xe7\x95", 4: b"\x8c"}
"""Tokens 3 and 4 are the halves of a character."""
CHAT: Prompt = (ChatTurn("user", "x"),)


def context(prompt: Prompt, **options: Any) -> ResponseContext:
    request = GenerationRequest("r", prompt, SamplingParams(logprobs=1), **options)
    return ResponseContext(request, "m", 5, TOKENS.__getitem__, (7, 8))


def logprobs(*token_ids: int) -> tuple[PositionLogprobs, ...]:
    top = (TokenLogprob(1, -0.5), TokenLogprob(2, -float("inf")))
    return tuple(PositionLogprobs(TokenLogprob(token_id, -1.0), top) for token_id in token_ids)


WHOLE = Answer(0, (1, 2, 3, 4), "Hi 世界", logprobs(1, 2, 3, 4), FinishReason.STOP, "END")
USAGE = Usage(prompt_tokens=2, output_tokens=4, cached_tokens=1)


def test_chat_body() -> None:
    body = response_body(context(CHAT, return_token_ids=True, include_stop=True), [WHOLE], USAGE)
    (choice,) = body.pop("choices")
    assert body == {
        "id": "chatcmpl-r",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 4,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
        "prompt_token_ids": [7, 8],
    }
    content = choice.pop("logprobs")["content"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "Hi 世界END", "refusal": None},
        "finish_reason": "stop",
        "stop_reason": "END",
        "token_ids": [1, 2, 3, 4],
    }
    assert content[2] == {
        "token": "\N{REPLACEMENT CHARACTER}",
        "logprob": -1.0,
        "bytes": [0xE7, 0x95],
        "top_logprobs": [
            {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
            {"token": " 世", "logprob": -9999.0, "bytes": [32, 228, 184, 150]},
        ],
    }


def test_completion_body() -> None:
    body = response_body(context("x", return_token_ids=True), [WHOLE], USAGE)
    assert (body["id"], body["object"]) == ("cmpl-r", "text_completion")
    assert body["choices"] == [
        {
            "index": 0,
            "text": "Hi 世界",
            "logprobs": {
                "tokens": ["Hi", " 世", "bytes:\\xe7\\x95", "bytes:\\x8c"],
                "token_logprobs": [-1.0] * 4,
                "top_logprobs": [
                    {"Hi": -1.0, " 世": -9999.0},
                    {"Hi": -0.5, " 世": -1.0},
                    {"Hi": -0.5, " 世": -9999.0, "bytes:\\xe7\\x95": -1.0},
                    {"Hi": -0.5, " 世": -9999.0, "bytes:\\x8c": -1.0},
                ],
                "text_offset": [0, 2, 4, 4],
            },
            "finish_reason": "stop",
            "stop_reason": "END",
            "token_ids": [1, 2, 3, 4],
            "prompt_token_ids": [7, 8],
        }
    ]


PIECES = (
    Answer(0, (1,), "Hi", logprobs(1)),
    Answer(0, (2,), " 世", logprobs(2)),
    Answer(0, (3, 4), "界", logprobs(3, 4)),
    Answer(0, finish_reason=FinishReason.STOP, stopped_by="END"),
)


def joined(lists: Iterable[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


@given(st.permutations([0] * len(PIECES) + [1] * len(PIECES)))
def test_chunks_make_the_whole(order: list[int]) -> None:
    """Whatever the order in which the pieces of two answers come."""
    for prompt in (CHAT, "x"):
        ctx = context(prompt, stream=True, stream_usage=True, return_token_ids=True)
        stream, progress, chunks = response_stream(ctx), [0, 0], []
        for index in order:
            piece = PIECES[progress[index]]
            progress[index] += 1
            fields = (piece.token_ids, piece.text, piece.logprobs, piece.finish_reason, piece.stopped_by)
            chunks += stream.chunks(Answer(index, *fields))
        whole = response_body(ctx, [WHOLE, WHOLE], USAGE)["choices"][0]
        assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
        assert "prompt_token_ids" in (chunks[0] if ctx.request.is_chat else chunks[0]["choices"][0])
        assert sum("prompt_token_ids" in json.dumps(chunk) for chunk in chunks) == 1
        for index in (0, 1):
            choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
            assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop"]
            assert joined(c.get("token_ids", []) for c in choices) == list(WHOLE.token_ids)
            logged = [c["logprobs"] for c in choices if c["logprobs"]]
            if ctx.request.is_chat:
                assert choices[0]["delta"] == {"role": "assistant", "content": ""}
                assert "".join(c["delta"].get("content", "") for c in choices) == WHOLE.text
                assert joined(entry["content"] for entry in logged) == whole["logprobs"]["content"]
            else:
                assert "".join(c["text"] for c in choices) == WHOLE.text
                columns = {name: joined(entry[name] for entry in logged) for name in logged[0]}
                assert columns == whole["logprobs"]
        last = stream.usage_chunk(USAGE)
        assert last is not None and last["choices"] == [] and last["usage"]["total_tokens"] == 6


def test_offsets_count_what_the_text_has() -> None:
    """Text is held back for a stop string, token 9 is hidden: whole or in pieces, offsets are the same."""
    end = Answer(0, (), "y", (), FinishReason.STOP, 9)
    pieces = (Answer(0, (9, 1), "", logprobs(9, 1)), Answer(0, (2,), "Hi 世", logprobs(2)), end)
    whole = Answer(0, (9, 1, 2), "Hi 世y", logprobs(9, 1, 2), FinishReason.STOP, 9)
    spelled = {**TOKENS, 9: b"<|end|>"}
    ctx = replace(context("x", stream=True), token_bytes=spelled.__getitem__, hidden=lambda token: token == 9)
    (choice,) = response_body(ctx, [whole], USAGE)["choices"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 2]
    stream = response_stream(ctx)
    chunks = [chunk["choices"][0] for chunk in joined(stream.chunks(piece) for piece in pieces)]
    assert joined(chunk["logprobs"]["text_offset"] for chunk in chunks if chunk["logprobs"]) == [0, 0, 2]
    shown = replace(ctx, hidden=None)
    assert response_body(shown, [whole], USAGE)["choices"][0]["logprobs"]["text_offset"] == [0, 7, 9]


@pytest.mark.parametrize(
    ("by", "asked", "reason"), [(9, (), None), (9, (9,), 9), ("END", (), "END"), (None, (9,), None)]
)
def test_an_ordinary_end_has_no_stop_reason(by: Any, asked: tuple[int, ...], reason: Any) -> None:
    for prompt in (CHAT, "x"):
        ctx = context(prompt, stream=True)
        ctx = replace(ctx, request=replace(ctx.request, sampling=SamplingParams(stop_token_ids=asked)))
        answer = replace(WHOLE, stopped_by=by, logprobs=())
        (choice,) = response_body(ctx, [answer], USAGE)["choices"]
        last = response_stream(ctx).chunks(answer)[-1]["choices"][0]
        assert choice["stop_reason"] == last["stop_reason"] == reason
        assert choice["finish_reason"] == last["finish_reason"] == "stop"


@pytest.mark.parametrize("options", [{}, {"return_token_ids": True}, {"stream_usage": True}])
def test_what_is_sent_is_of_the_types_that_are_described(options: dict[str, Any]) -> None:
    for prompt, whole, part in ((CHAT, ChatAnswer, ChatChunk), ("x", CompletionAnswer, CompletionChunk)):
        ctx = context(prompt, **options)
        TypeAdapter(whole).validate_python(response_body(ctx, [WHOLE, WHOLE], USAGE), strict=True)
        stream = response_stream(ctx)
        for chunk in joined(stream.chunks(piece) for piece in PIECES):
            TypeAdapter(part).validate_python(chunk, strict=True)
        if (last := stream.usage_chunk(USAGE)) is not None:
            TypeAdapter(part).validate_python(last, strict=True)
    TypeAdapter(Error).validate_python(error_response(InvalidRequestError("bad n", "n"))[1], strict=True)


def test_plain_stream_has_no_extras() -> None:
    ctx = ResponseContext(GenerationRequest("r", CHAT, stream=True), "m", 5)
    stream = response_stream(ctx)
    assert stream.usage_chunk(USAGE) is None
    (opening, delta) = stream.chunks(Answer(0, (1,), "Hi"))
    assert delta["choices"] == [
        {"index": 0, "delta": {"content": "Hi"}, "logprobs": None, "finish_reason": None}
    ]
    assert sse(opening).startswith(b'data: {"id":"chatcmpl-r"') and sse(opening).endswith(b"}\n\n")


@pytest.mark.parametrize(
    ("error", "status", "kind", "param"),
    [
        (InvalidRequestError("bad n", "n"), 400, "invalid_request_error", "n"),
        (NotFoundError("no such model"), 404, "invalid_request_error", None),
        (OverloadedError("full", 1500), 429, "rate_limit_error", None),
        (UnavailableError("no instance"), 503, "service_unavailable_error", None),
        (ModelError("corrupt"), 500, "server_error", None),
    ],
)
def test_errors_have_their_status(error: Exception, status: int, kind: str, param: str | None) -> None:
    got, body, headers = error_response(error)
    assert (got, body["error"]["type"], body["error"]["param"]) == (status, kind, param)
    assert body["error"]["message"] == str(error)
    assert headers.get("retry-after") == {429: "2", 503: "1"}.get(status)


def test_internal_errors_are_not_shown() -> None:
    status, body, _ = error_response(KeyError("password"))
    assert status == 500 and "password" not in body["error"]["message"]


def test_running_usage_and_echo_in_streams() -> None:
    """What load generators made for vLLM count tokens by."""
    options: dict[str, Any] = {"stream": True, "stream_usage": True, "stream_running_usage": True}
    for prompt in (CHAT, "x"):
        ctx = replace(context(prompt, echo=prompt == "x", **options), prompt_tokens=2, prompt_text="x")
        stream = response_stream(ctx)
        chunks = joined(stream.chunks(piece) for piece in PIECES)
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts) and counts[-1] == 4
        assert all(chunk["usage"]["prompt_tokens"] == 2 for chunk in chunks)
        if prompt == "x":
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "xHi 世界"
            assert response_body(ctx, [WHOLE], USAGE)["choices"][0]["text"] == "xHi 世界"
