"""The OpenAI-compatible API over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.client import IDS, eventually, listen, request
from tests.fakes.controller import FakeController, fake_controller, scripted_text, scripted_vector
from tests.fakes.router import RunningRouter, running_router
from tidepipe.v1 import sampling_pb2
from tidepipe_common.limits import MAX_REQUEST_BYTES
from tidepipe_common.version import tidepipe_version

PROMPT = "tell me"
CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with fake_controller() as one:
        yield one


@pytest.fixture
async def router(controller: FakeController) -> AsyncIterator[RunningRouter]:
    async with running_router(max_requests=2) as one:
        await controller.register(one.address)
        yield one


@pytest.fixture
async def http(router: RunningRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{router.http}", timeout=10, trust_env=False) as client:
        yield client


def ids(text: str) -> list[int]:
    return list(text.encode())


async def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end as OpenAI's do."""
    lines = [line async for line in response.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_completion_as_json(http: httpx.AsyncClient) -> None:
    full = scripted_text(ids(PROMPT), 30)
    body = {
        "prompt": PROMPT,
        "max_tokens": 30,
        "temperature": 0,
        "logprobs": 0,
        "n": 2,
        "seed": 5,
        "stop": [full[20:23]],
        "return_token_ids": True,
    }
    response = await http.post(COMPLETE, json=body, headers={"x-request-id": "mine"})
    answer = response.json()
    assert response.status_code == 200 and response.headers["x-request-id"] == "mine"
    assert (answer["object"], answer["model"]) == ("text_completion", "fake")
    first, second = answer["choices"]
    text = scripted_text(ids(PROMPT), 30, seed=5)
    assert (first["index"], second["index"]) == (0, 1) and first["text"] == text[: len(first["text"])]
    assert first["logprobs"]["token_logprobs"] == [-1.0] * len(first["token_ids"])
    assert first["prompt_token_ids"] == ids(PROMPT)
    usage = answer["usage"]
    assert usage["completion_tokens"] == len(first["token_ids"]) + len(second["token_ids"])


async def test_chat_as_stream_with_usage_and_stop(http: httpx.AsyncClient) -> None:
    full = scripted_text(ids("user: hi\n"), 60)
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_tokens": 60,
        "stop": full[30:33],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with http.stream("POST", CHAT, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = await events(response)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert said == full[: full.index(full[30:33])]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == len(said) + 3


async def test_several_prompts_are_answered_together(http: httpx.AsyncClient) -> None:
    """Choices are numbered prompt by prompt, whole and streamed; who is wrong is named."""
    prompts: list[Any] = [PROMPT, ids("and me"), "me too"]
    texts = [PROMPT, "and me", "me too"]
    body = {"prompt": prompts, "max_tokens": 9, "temperature": 0, "n": 2, "seed": 5, "echo": True}
    answer = (await http.post(COMPLETE, json=body | {"return_token_ids": True})).json()
    firsts = [text + scripted_text(ids(text), 9, seed=5) for text in texts]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"][::2]] == firsts
    assert [choice["prompt_token_ids"] for choice in answer["choices"][1::2]] == [ids(text) for text in texts]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, texts))
    assert answer["usage"]["completion_tokens"] == 6 * 9
    said = dict.fromkeys(range(6), "")
    async with http.stream("POST", COMPLETE, json=body | {"stream": True}) as response:
        for chunk in await events(response):
            for choice in chunk["choices"]:
                said[choice["index"]] += choice["text"]
    assert list(said.values()) == [choice["text"] for choice in answer["choices"]]
    for wrong in ("", [1, 999], "x" * 2000):
        response = await http.post(COMPLETE, json=body | {"prompt": [PROMPT, wrong]})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "prompt"), error
        assert error["message"].startswith("prompt 1: "), error


async def test_a_prompt_comes_back_with_its_log_probabilities(http: httpx.AsyncClient) -> None:
    """As evaluation harnesses ask: whole and streamed, of several prompts, with and without an answer."""
    body = {"prompt": ["hé!", ids("ab")], "echo": True, "logprobs": 2, "max_tokens": 0}
    answer = (await http.post(COMPLETE, json=body)).json()
    first, second = answer["choices"]
    assert (first["text"], first["finish_reason"], answer["usage"]["completion_tokens"]) == (
        "hé!",
        "length",
        0,
    )
    assert first["logprobs"] == {
        "tokens": ["h", "bytes:\\xc3", "bytes:\\xa9", "!"],
        "token_logprobs": [None, -195, -169, -33],
        "top_logprobs": [
            None,
            *[
                {"2": -50, "3": -51, token: value}
                for token, value in (("bytes:\\xc3", -195), ("bytes:\\xa9", -169), ("!", -33))
            ],
        ],
        "text_offset": [0, 1, 1, 2],
    }
    assert second["logprobs"]["token_logprobs"] == [None, -98]
    body |= {"max_tokens": 3, "n": 2, "seed": 5, "temperature": 0}
    answer = (await http.post(COMPLETE, json=body)).json()
    for choice, prompt in zip(answer["choices"], ("hé!", "hé!", "ab", "ab"), strict=True):
        told = choice["logprobs"]
        assert "".join(told["tokens"][-3:]) == choice["text"].removeprefix(prompt)
        assert told["token_logprobs"][0] is None and told["token_logprobs"][-3:] == [-1.0] * 3
        assert told["text_offset"][-3:] == [len(prompt) + number for number in range(3)]
    streamed: dict[int, list[Any]] = {index: [] for index in range(4)}
    async with http.stream("POST", COMPLETE, json=body | {"stream": True}) as response:
        for chunk in await events(response):
            for choice in chunk["choices"]:
                streamed[choice["index"]] += (choice["logprobs"] or {}).get("token_logprobs", [])
    assert list(streamed.values()) == [one["logprobs"]["token_logprobs"] for one in answer["choices"]]


async def test_log_probabilities_of_a_prompt_as_vllm_tells_them(http: httpx.AsyncClient) -> None:
    asked = {"prompt_logprobs": 1, "max_tokens": 2, "temperature": 0}
    chat = {"messages": [{"role": "user", "content": ""}]} | asked
    told = (await http.post(CHAT, json=chat)).json()["prompt_logprobs"]
    assert told[0] is None and len(told) == len("user: \n")
    assert told[1] == {
        "115": {"logprob": -115, "rank": 3, "decoded_token": "s"},
        "50": {"logprob": -50, "rank": 1, "decoded_token": "2"},
    }
    (choice,) = (await http.post(COMPLETE, json={"prompt": "ab"} | asked)).json()["choices"]
    assert set(choice["prompt_logprobs"][1]) == {"98", "50"} and choice["logprobs"] is None
    for wrong, param in (
        ({"prompt": PROMPT, "max_tokens": 0}, "max_tokens"),
        ({"prompt": PROMPT, "max_tokens": 0, "echo": True, "n": 2}, "n"),
        ({"prompt": PROMPT, "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt": PROMPT, "prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt": PROMPT, "prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt": ["x" * 990] * 26, "prompt_logprobs": 20}, "prompt"),
    ):
        response = await http.post(COMPLETE, json=wrong)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), (
            wrong,
            response.text,
        )


async def test_texts_become_vectors_and_are_ranked_by_them(http: httpx.AsyncClient) -> None:
    texts: list[Any] = ["ab", ids("c"), "ddd"]
    body = {"input": texts, "normalize": False}
    answer = (await http.post("/v1/embeddings", json=body)).json()
    vectors = [scripted_vector(ids(text)) for text in ("ab", "c", "ddd")]
    assert [one["embedding"] for one in answer["data"]] == vectors
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6} and answer["model"] == "fake"
    (one,) = (
        await http.post("/v1/embeddings", json={"input": "ab", "dimensions": 2, "encoding_format": "base64"})
    ).json()["data"]
    short = array("f", base64.b64decode(one["embedding"]))
    length = math.hypot(*vectors[0][:2])
    assert list(short) == pytest.approx([value / length for value in vectors[0][:2]])
    ranked = (
        await http.post("/v2/rerank", json={"query": "ab", "documents": ["zzzzzz", "ab", "c"], "top_n": 2})
    ).json()["results"]
    assert ranked[0]["index"] == 1 and len(ranked) == 2
    assert ranked[0]["relevance_score"] == pytest.approx(1.0) and ranked[0]["document"] == {"text": "ab"}
    for path, wrong, param in (
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 5}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "stream": True}, "stream"),
        ("/v1/embeddings", {"input": "a" * 2000}, "input"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b", ""]}, "documents"),
        ("/v1/rerank", {"query": "a" * 2000, "documents": ["b"]}, "query"),
    ):
        response = await http.post(path, json=wrong)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


async def test_texts_become_tokens_and_text_again(http: httpx.AsyncClient) -> None:
    for prefix in ("", "/v1"):
        answer = (
            await http.post(f"{prefix}/tokenize", json={"prompt": "hé", "return_token_strs": True})
        ).json()
        assert answer == {
            "count": 3,
            "max_model_len": 1000,
            "tokens": [104, 195, 169],
            "token_strs": ["h", "bytes:\\xc3", "bytes:\\xa9"],
        }
        back = await http.post(f"{prefix}/detokenize", json={"tokens": answer["tokens"]})
        assert back.json() == {"prompt": "hé"}
    long = (await http.post("/tokenize", json={"prompt": "x" * 3000})).json()
    assert (long["count"], long["token_strs"]) == (3000, None), "longer than the context: to be counted"
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    assert (await http.post("/tokenize", json=chat)).json()["tokens"] == ids("user: hi\n")
    for path, wrong, param in (
        ("/tokenize", {}, "prompt"),
        ("/tokenize", chat | {"prompt": "x"}, "prompt"),
        ("/tokenize", {"prompt": "x", "model": "another"}, None),
        ("/tokenize", {"prompt": "x", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", chat | {"chat_template": "{{x}}"}, "chat_template"),
        ("/detokenize", {"tokens": [1, 256]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ):
        response = await http.post(path, json=wrong)
        assert response.status_code in (400, 404) and response.json()["error"]["param"] == param, (
            wrong,
            response.text,
        )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_cancels(
    http: httpx.AsyncClient, controller: FakeController, stream: bool
) -> None:
    body = {"prompt": PROMPT, "max_tokens": 900, "temperature": 0, "stream": stream}
    call = asyncio.create_task(http.post(COMPLETE, json=body))
    await eventually(lambda: any(len(held.tokens) > 5 for held in controller.held.values()))
    call.cancel()
    await eventually(lambda: bool(controller.cancelled) and not controller.running())


async def test_a_client_that_hangs_up_while_it_waits_cancels(
    http: httpx.AsyncClient, controller: FakeController, router: RunningRouter
) -> None:
    controller.paused = True
    call = asyncio.create_task(http.post(COMPLETE, json={"prompt": PROMPT, "stream": True}))
    await eventually(lambda: bool(controller.running()))
    call.cancel()
    await eventually(lambda: not len(router.service.table) and not controller.running())


JSON = {"content-type": "application/json"}


async def test_errors_are_openais(http: httpx.AsyncClient, controller: FakeController) -> None:
    good = {"prompt": PROMPT, "max_tokens": 5}
    cases: list[tuple[str, Any, int, str | None]] = [
        (COMPLETE, b"{", 400, None),
        (COMPLETE, b'{"prompt": "\xff"}', 400, None),
        (COMPLETE, b'{"prompt": "x", "temperature": NaN}', 400, None),
        (COMPLETE, b"[" * 100_000, 400, None),
        (COMPLETE, good | {"temperature": -1}, 400, "temperature"),
        (COMPLETE, good | {"max_tokens": 5000}, 400, "max_tokens"),
        (COMPLETE, good | {"prompt": ""}, 400, "prompt"),
        (COMPLETE, good | {"prompt": "x" * 300_000}, 400, "prompt"),
        (COMPLETE, good | {"prompt": [1, 999]}, 400, "prompt"),
        (COMPLETE, good | {"unheard": 1}, 400, "unheard"),
        (COMPLETE, good | {"model": "another"}, 404, None),
        (COMPLETE, b" " * (MAX_REQUEST_BYTES + 1), 413, None),
        (CHAT, {"messages": []}, 400, "messages"),
        ("/v1/nothing", good, 404, None),
        ("/v1/models", good, 405, None),
    ]
    for stream in (False, True):
        for path, body, status, param in cases:
            if isinstance(body, dict) and stream:
                body = body | {"stream": True}
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            response = await http.post(path, content=content, headers=JSON)
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (status, param), (path, content[:80], error)
            assert error["message"] and error["type"] == "invalid_request_error"
    assert not controller.submitted


async def test_latency_targets_are_checked(http: httpx.AsyncClient) -> None:
    body = {"prompt": PROMPT, "max_tokens": 5}
    good = await http.post(COMPLETE, json=body, headers={"x-slo-ttft-ms": "250.5", "x-slo-tpot-ms": "1e2"})
    assert good.status_code == 200
    for header, value in (("x-slo-ttft-ms", "-1"), ("x-slo-tpot-ms", "nan"), ("x-slo-tpot-ms", "fast")):
        response = await http.post(COMPLETE, json=body, headers={header: value})
        assert (response.status_code, response.json()["error"]["param"]) == (400, header)


async def test_overload(http: httpx.AsyncClient, controller: FakeController, router: RunningRouter) -> None:
    controller.paused = True
    waiting = [asyncio.create_task(listen(router, request(f"w{i}"))) for i in range(2)]
    await eventually(lambda: len(controller.running()) == 2)
    response = await http.post(COMPLETE, json={"prompt": PROMPT})
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "rate_limit_error"
    controller.paused = False
    await asyncio.gather(*waiting)


async def test_a_trace_id_names_nothing(
    http: httpx.AsyncClient, controller: FakeController, router: RunningRouter
) -> None:
    """Proxies give it to retries and to other requests alike; so do callers of gRPC, as an id."""
    trace = {"x-request-id": "trace-1"}
    body = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "stream": True}
    async with http.stream("POST", COMPLETE, json=body, headers=trace) as response:
        await anext(response.aiter_lines())
    again = await http.post(COMPLETE, json=body | {"stream": False}, headers=trace)
    (choice,) = again.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (scripted_text(ids(PROMPT), 200), "length")
    drawn = {"prompt": PROMPT, "temperature": 1}
    other, *draws = await asyncio.gather(
        listen(router, request("trace-1")), http.post(COMPLETE, json=drawn, headers=trace)
    )
    assert other.text == scripted_text(IDS, 40)
    # Draws that come one after the other have seeds of their own as well.
    draws.append(await http.post(COMPLETE, json=drawn, headers=trace))
    assert len({draw.json()["choices"][0]["text"] for draw in draws}) == 2
    assert all(draw.headers["x-request-id"] == "trace-1" for draw in draws)
    for odd in ("x" * 300, ""):
        assert (await http.post(COMPLETE, json=drawn, headers={"x-request-id": odd})).status_code == 200


async def test_a_key_makes_two_calls_one_request(http: httpx.AsyncClient, controller: FakeController) -> None:
    key = {"idempotency-key": "pay once"}
    body = {"prompt": PROMPT, "max_tokens": 300, "temperature": 1}
    # Hung up on, streamed; asked again in the midst of it, twice; and once more when it is complete.
    async with http.stream("POST", COMPLETE, json=body | {"stream": True}, headers=key) as response:
        await anext(response.aiter_lines())
    calls = [http.post(COMPLETE, json=body, headers=key) for _ in range(2)]
    answers = [*await asyncio.gather(*calls), await http.post(COMPLETE, json=body, headers=key)]
    assert len(controller.submitted) == 1
    seed = controller.submitted[0].sampling.seed
    for answer in answers:
        assert answer.json()["choices"][0]["text"] == scripted_text(ids(PROMPT), 300, seed=seed)
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    refused = await http.post(COMPLETE, json=body | {"max_tokens": 3}, headers=key)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "idempotency_key_reused")
    assert (await http.post(COMPLETE, json=body, headers={"idempotency-key": "x" * 300})).status_code == 400


async def test_a_key_outlives_its_router(controller: FakeController, tmp_path: Path) -> None:
    """What was complete comes from the disk; what was under way goes on where it was, with the same draws."""
    bodies = {
        "whole": {"prompt": PROMPT, "max_tokens": 30, "temperature": 1, "n": 2, "logprobs": 1},
        "part": {"prompt": PROMPT, "max_tokens": 900, "temperature": 1},
    }
    async with running_router(data_dir=str(tmp_path)) as first:
        await controller.register(first.address)
        async with httpx.AsyncClient(base_url=f"http://{first.http}", timeout=20, trust_env=False) as http:
            whole = await http.post(COMPLETE, json=bodies["whole"], headers={"idempotency-key": "whole"})
            controller.step_s = 0.01
            part = asyncio.create_task(
                http.post(COMPLETE, json=bodies["part"], headers={"idempotency-key": "part"})
            )
            await eventually(lambda: any(len(held.tokens) > 60 for held in controller.held.values()))
            first.lifecycle.stopping.set()
            cut = await part
    assert cut.status_code == 503 and int(cut.headers["retry-after"]) >= 1
    controller.step_s, seen = 0.001, len(controller.submitted)
    seed = controller.submitted[-1].sampling.seed
    async with running_router(data_dir=str(tmp_path)) as second:
        await controller.register(second.address)
        async with httpx.AsyncClient(base_url=f"http://{second.http}", timeout=20, trust_env=False) as http:
            again = await http.post(COMPLETE, json=bodies["whole"], headers={"idempotency-key": "whole"})
            assert again.json()["choices"] == whole.json()["choices"]
            rest = await http.post(COMPLETE, json=bodies["part"], headers={"idempotency-key": "part"})
            assert rest.json()["choices"][0]["text"] == scripted_text(ids(PROMPT), 900, seed=seed)
            other = await http.post(COMPLETE, json=bodies["part"], headers={"idempotency-key": "whole"})
            assert other.status_code == 422
    (resumed,) = controller.submitted[seen:]
    assert len(resumed.output_token_ids) > 50


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_answer_is_an_error(
    http: httpx.AsyncClient, controller: FakeController, router: RunningRouter, stream: bool
) -> None:
    """By whomever it was cut, and also if it is one of several of which others are complete."""
    key = {"idempotency-key": "k"}
    body = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "n": 2, "stream": stream}
    call = asyncio.create_task(http.post(COMPLETE, json=body, headers=key))
    await eventually(lambda: sum(len(held.tokens) > 20 for held in controller.held.values()) == 2)
    first, _ = controller.running()
    first.finish = sampling_pb2.FINISH_REASON_STOP
    await eventually(lambda: len(controller.running()) == 1)
    await asyncio.sleep(0.05)
    assert router.service.table.cancel([first.spec.sequence_id.rpartition("/")[0]]) == 1
    answer = await call
    assert "cancelled before it was complete" in answer.text and '"cancelled"' not in answer.text
    assert "[DONE]" not in answer.text
    if not stream:
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    # The same key gets the whole of it.
    again = (await http.post(COMPLETE, json=body | {"stream": False}, headers=key)).json()
    assert [choice["finish_reason"] for choice in again["choices"]] == ["length", "length"]
    assert again["choices"][0]["text"] == scripted_text(ids(PROMPT), 200)
    assert len(again["choices"][1]["text"]) == 200


async def test_health_readiness_and_models(controller: FakeController) -> None:
    async with (
        running_router() as router,
        httpx.AsyncClient(base_url=f"http://{router.http}", trust_env=False) as http,
    ):
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/version")).json() == {"version": tidepipe_version()}
        assert (await http.get("/ready")).json()["missing"] == ["an instance"]
        assert (await http.get("/v1/models")).json()["data"] == []
        await controller.register(router.address)
        await eventually(lambda: bool(router.service.registry.connected))
        assert (await http.get("/ready")).status_code == 200
        (model,) = (await http.get("/v1/models")).json()["data"]
        assert (model["id"], model["max_model_len"]) == ("fake", 1000)
        assert (await http.get("/v1/models/fake")).json() == model
        assert (await http.get("/v1/models/other/one")).status_code == 404


async def test_a_reader_that_is_slow_costs_no_memory_and_loses_nothing(
    http: httpx.AsyncClient, controller: FakeController
) -> None:
    controller.step_s = 0.0005
    body = {"prompt": PROMPT, "max_tokens": 900, "temperature": 0, "stream": True}
    async with http.stream("POST", COMPLETE, json=body) as response:
        await asyncio.sleep(0.5)
        chunks = await events(response)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == scripted_text(ids(PROMPT), 900)


async def test_a_default_is_clamped_and_what_was_sent_is_not(http: httpx.AsyncClient) -> None:
    """Nine tokens are left of a context of 1000; nobody asked for the 16 that a completion has by default."""
    body = {"prompt": "x" * 991, "temperature": 0}
    answer = (await http.post(COMPLETE, json=body)).json()
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (9, "length")
    assert answer["choices"][0]["stop_reason"] is None
    chat = {"messages": [{"role": "user", "content": "y" * 500}], "max_tokens": 500}
    for path, wrong, numbers, param in (
        (COMPLETE, body | {"max_tokens": 16}, "1007 tokens (991 in the prompt, 16 in", "max_tokens"),
        (CHAT, chat, "1007 tokens (507 in the messages, 500 in", "messages"),
        (COMPLETE, {"prompt": "x" * 1000}, "your prompt resulted in 1000 tokens", "prompt"),
    ):
        response = await http.post(path, json=wrong)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["message"].startswith("This model's maximum context length is 1000 tokens. However, you")
        assert numbers in error["message"] and error["param"] == param


async def test_text_that_is_none_is_refused_by_its_name(http: httpx.AsyncClient) -> None:
    for path, raw, param in (
        (COMPLETE, rb'{"prompt": "a", "model": "\ud800"}', "model"),
        (COMPLETE, rb'{"prompt": "a\udfff"}', "prompt"),
        (CHAT, rb'{"messages": [{"role": "user", "content": "a", "name": "\ud83d"}]}', "messages"),
        (CHAT, rb'{"messages": [{"role": "\ud800", "content": "a"}]}', "messages"),
        (COMPLETE, rb'{"prompt": "a", "\ud800": 1}', None),
        (COMPLETE, rb'{"prompt": "a", "metadata": {"k": ["\uDBFF"]}}', "metadata"),
    ):
        response = await http.post(path, content=raw, headers=JSON)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert "is not valid Unicode" in error["message"]


async def test_other_paths_and_methods_are_errors_of_the_api(http: httpx.AsyncClient) -> None:
    for method, path, status, allowed in (
        ("DELETE", COMPLETE, 405, "POST"),
        ("PUT", "/v1/models", 405, "GET, HEAD"),
        ("PATCH", "/v1/files", 405, "DELETE, GET, HEAD, POST"),
        ("POST", COMPLETE + "/", 404, None),
        ("GET", "/v1/nothing%0d%0aX: y", 404, None),
        ("GET", "/health/", 404, None),
        ("GET", "/v1/models/%ff%00", 404, None),
    ):
        response = await http.request(method, path)
        assert (response.status_code, response.headers.get("allow")) == (status, allowed), path
        assert "location" not in response.headers
        assert response.json()["error"]["type"] == "invalid_request_error"
