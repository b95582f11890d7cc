"""The official `openai` client against a real cluster with the real model."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import psutil
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

import tidepipe
from tests.fakes.thinking_model import thinking_model
from tidepipe_common.types.structure import Structure

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

MODEL = "smollm2-135m"
ASK: Any = [{"role": "user", "content": "What is the capital of France? One word."}]


class RunningCluster:
    """`tidepipe up` with files and batches in `data`."""

    def __init__(self, model: Path, data: Path) -> None:
        flags = ["--model", str(model), "--threads", "1", "--data-dir", str(data)]
        command = [sys.executable, "-m", "tidepipe.cli.main", "up", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        ready = re.fullmatch(r"ready http=(\S+) grpc=(\S+)\n", self.process.stdout.readline())
        assert ready
        self.url, self.grpc = f"http://{ready[1]}/v1", ready[2]

    def kill_router(self) -> None:
        """As a crash: the supervisor starts it again."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if "router" in child.cmdline()[1:4]:
                child.send_signal(signal.SIGKILL)
                return
        raise AssertionError("there is no router")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def cluster(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    model = thinking_model(model_path, tmp_path_factory.mktemp("model") / MODEL)
    one = RunningCluster(model, tmp_path_factory.mktemp("data"))
    yield one
    one.stop()


@pytest.fixture
def client(cluster: RunningCluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=cluster.url, api_key="none", max_retries=0, timeout=60) as one:
        yield one


def test_chat_whole_and_streamed_agree(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    options: Any = {"model": MODEL, "messages": ASK, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    said = whole.choices[0].message.content
    assert said is not None and "Paris" in said
    assert whole.choices[0].logprobs is not None and whole.choices[0].logprobs.content is not None
    assert all(len(token.top_logprobs) == 2 for token in whole.choices[0].logprobs.content)
    chunks = list(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = chunks[-1].usage
    assert usage is not None and whole.usage is not None and usage.prompt_tokens_details is not None
    assert (streamed, usage.total_tokens) == (said, whole.usage.total_tokens)
    # All whole blocks of 16 tokens before the last token were there.
    assert usage.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // 16 * 16


async def test_many_at_once_and_leaving_early(cluster: RunningCluster) -> None:
    async with openai.AsyncOpenAI(base_url=cluster.url, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.completions.create(
                    model=MODEL,
                    prompt=f"{n} plus {n} is",
                    max_tokens=8,
                    seed=n,
                    extra_body={"ignore_eos": True},
                )
                for n in range(8)
            )
        )
        assert [answer.usage and answer.usage.completion_tokens for answer in answers] == [8] * 8
        stream = await client.completions.create(model=MODEL, prompt="Count:", max_tokens=2000, stream=True)
        async for _ in stream:
            break
        await stream.close()


class Person(BaseModel):
    """What the model is to fill in."""

    name: str
    age: int


def test_structured_outputs_and_tools(client: openai.OpenAI) -> None:
    ask: Any = [{"role": "user", "content": "Ann is thirty years old. Give her name and age as JSON."}]
    parsed = client.chat.completions.parse(
        model=MODEL, messages=ask, response_format=Person, temperature=0, max_tokens=60
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    chosen = client.completions.create(
        model=MODEL, prompt="Is water wet?", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert chosen.choices[0].text in ("yes", "no") and chosen.choices[0].finish_reason == "stop"
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    answer = client.chat.completions.create(model=MODEL, messages=ask, tools=[tool], max_tokens=4)
    assert answer.choices[0].message.content
    person = openai.pydantic_function_tool(Person, name="look")
    must: Any = {
        "model": MODEL,
        "messages": ask,
        "tools": [person],
        "tool_choice": "required",
        "max_tokens": 90,
    }
    forced = client.chat.completions.parse(**must, temperature=0)
    (call,) = forced.choices[0].message.tool_calls or ()
    assert forced.choices[0].finish_reason == "tool_calls" and forced.choices[0].message.content is None
    assert isinstance(call.function.parsed_arguments, Person)
    with client.chat.completions.stream(**must, temperature=0) as stream:
        for _ in stream:
            pass
        (again,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert again.function.arguments == call.function.arguments
    echoed = client.completions.create(model=MODEL, prompt="One two", echo=True, max_tokens=3)
    assert echoed.choices[0].text.startswith("One two")


def test_forced_calls_and_bounded_thoughts(client: openai.OpenAI) -> None:
    fields: Any = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    }
    tool: Any = {"type": "function", "function": {"name": "get_weather", "parameters": fields}}
    other: Any = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    thinking = {"chat_template_kwargs": {"enable_thinking": True}, "max_reasoning_tokens": 5}
    for tools, choice, extra in (([tool], "required", {}), ([other, tool], named, thinking)):
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK, tools=tools, tool_choice=choice, parallel_tool_calls=False,
            temperature=1.3, seed=1, max_tokens=120, extra_body=extra,
        )  # fmt: skip
        message: Any = answer.choices[0].message
        (call,) = message.tool_calls
        assert call.function.name == "get_weather"
        jsonschema.validate(json.loads(call.function.arguments), fields)
        assert answer.usage is not None
        details = answer.usage.completion_tokens_details
        assert bool(message.reasoning_content if extra else 0) == bool(extra)
        assert not extra or (details is not None and details.reasoning_tokens == 6)  # its end is one
    talked = client.chat.completions.create(
        model=MODEL, messages=ASK, temperature=0, max_tokens=30, extra_body={**thinking, "min_tokens": 20}
    )
    said: Any = talked.choices[0].message
    assert said.reasoning_content and said.content and "think>" not in said.content + said.reasoning_content
    for wrong in ({"chat_template_kwargs": {"enable_thinkin": True}}, {"max_reasoning_tokens": -1}):
        with pytest.raises(openai.BadRequestError, match=r"enable_thinking|at least 0"):
            client.chat.completions.create(model=MODEL, messages=ASK, extra_body=wrong)


def test_responses_are_parsed_called_and_outlive_the_router(
    client: openai.OpenAI, cluster: RunningCluster
) -> None:
    asked: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 60}
    about = "Ann is thirty years old. Give her name and age as JSON."
    parsed = client.responses.parse(**asked, input=about, text_format=Person)
    assert isinstance(parsed.output_parsed, Person)
    with client.responses.stream(**asked, input=about, text_format=Person) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    city = {"type": "string", "enum": ["Paris", "Rome"]}
    parameters = {
        "type": "object",
        "properties": {"city": city},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool: Any = {"type": "function", "name": "weather", "parameters": parameters, "strict": True}
    called = client.responses.create(**asked, input="Weather?", tools=[tool], tool_choice="required")
    call = called.output[-1]
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Paris", "Rome")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    after = client.responses.create(**asked, input=[result], previous_response_id=called.id)
    assert after.output_text
    long: Any = {**asked, "max_output_tokens": 300, "extra_body": {"ignore_eos": True}}
    heard: list[Any] = []
    for event in client.responses.create(**long, input="Count.", background=True, stream=True):
        heard.append(event)
        if len(heard) == 8:
            break
    cluster.kill_router()
    patient = client.with_options(max_retries=8)
    name, last = heard[0].response.id, heard[-1].sequence_number
    heard += patient.responses.retrieve(name, stream=True, starting_after=last)
    assert [event.sequence_number for event in heard] == list(range(len(heard)))
    whole = patient.responses.retrieve(name)
    told = "".join(event.delta for event in heard if event.type == "response.output_text.delta")
    assert told == whole.output_text and whole.usage is not None and whole.usage.output_tokens == 300


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=ASK, temperature=-1)
    assert bad.value.param == "temperature"
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}
    with pytest.raises(openai.BadRequestError, match="objekt") as bad:
        client.chat.completions.create(model=MODEL, messages=ASK, response_format=schema)  # type: ignore[call-overload]
    assert bad.value.param == "response_format"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="x-slo-ttft-ms"):
        client.completions.create(model=MODEL, prompt="x", extra_headers={"x-slo-ttft-ms": "-5"})
    with pytest.raises(openai.NotFoundError):
        client.files.content("file-unknown")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a.jsonl", b"{}"), purpose="assistants")


def lines(count: int, max_tokens: int) -> bytes:
    """A batch file; the last line has an error of its own."""
    bodies = [
        {"model": MODEL, "prompt": f"Number {n} is", "max_tokens": max_tokens, "ignore_eos": True, "seed": n}
        for n in range(count)
    ]
    bodies.append({"model": MODEL, "prompt": "x", "temperature": -1})
    return b"".join(
        json.dumps({"custom_id": f"c{n}", "method": "POST", "url": "/v1/completions", "body": body}).encode()
        + b"\n"
        for n, body in enumerate(bodies)
    )


def until(client: openai.OpenAI, batch_id: str, *wanted: str) -> Any:
    """The batch, once it is in one of these states; an answer may have to wait for a restart."""
    patient = client.with_options(max_retries=8)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        batch = patient.batches.retrieve(batch_id)
        if batch.status in wanted:
            return batch
        time.sleep(0.1)
    raise AssertionError(f"the batch is {batch.status}")


def test_a_batch_survives_the_routers_death(client: openai.OpenAI, cluster: RunningCluster) -> None:
    count = 40
    file = client.files.create(file=io.BytesIO(lines(count, 24)), purpose="batch")
    assert client.files.content(file.id).content == lines(count, 24)
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/completions",
        completion_window="24h",
        metadata={"who": "test"},
    )
    patient = client.with_options(max_retries=8)
    while patient.batches.retrieve(batch.id).request_counts.completed < 5:  # type: ignore[union-attr]
        time.sleep(0.02)
    cluster.kill_router()
    done = until(client, batch.id, "completed", "failed")
    assert (done.request_counts.completed, done.request_counts.failed) == (count, 1)
    assert done.metadata == {"who": "test"}
    answers = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"c{n}" for n in range(count)]
    assert all(a["response"]["body"]["usage"]["completion_tokens"] == 24 for a in answers)
    (error,) = (json.loads(line) for line in client.files.content(done.error_file_id).text.splitlines())
    assert error["custom_id"] == f"c{count}" and error["response"]["status_code"] == 400
    assert {one.id for one in client.files.list()} == {file.id, done.output_file_id, done.error_file_id}
    assert [one.id for one in client.batches.list()] == [batch.id]
    client.files.delete(done.output_file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(done.output_file_id)
    assert client.batches.retrieve(batch.id).request_counts.completed == count  # type: ignore[union-attr]


def test_batches_of_embeddings_and_responses_say_what_their_doors_say(client: openai.OpenAI) -> None:
    """The same vectors and words; what cannot be answered is a failed line."""
    texts = ["Rivers of Europe", "Lakes"]
    tool: Any = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    asked: Any = {"model": MODEL, "input": "Say hello.", "temperature": 0, "max_output_tokens": 40}
    forced = {**asked, "tools": [tool], "tool_choice": "required"}
    bodies: dict[Any, list[dict[str, Any]]] = {
        "/v1/embeddings": [{"model": MODEL, "input": texts}, {"input": "a", "dimensions": 10**6}],
        "/v1/responses": [asked, forced, {**asked, "background": True}],
    }
    answers = {}
    for url, wanted in bodies.items():
        lines = [
            json.dumps({"custom_id": f"{n}", "method": "POST", "url": url, "body": body})
            for n, body in enumerate(wanted)
        ]
        file = client.files.create(file=io.BytesIO("\n".join(lines).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
        done = until(client, batch.id, "completed", "failed")
        good, bad = (client.files.content(one).text for one in (done.output_file_id, done.error_file_id))
        answers[url] = [json.loads(line)["response"]["body"] for line in good.splitlines()]
        (error,) = [json.loads(line)["response"] for line in bad.splitlines()]
        assert error["status_code"] == 400
        assert error["body"]["error"]["param"] == ("background" if "responses" in url else "dimensions")
    vectors = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert answers["/v1/embeddings"] == [vectors.model_dump()]
    said, call = (Response.model_validate(body) for body in answers["/v1/responses"])
    assert said.output_text == client.responses.create(**asked, store=False).output_text != ""
    assert said.to_dict()["store"] is False
    assert [item.name for item in call.output if item.type == "function_call"] == ["look"]


def test_bad_batches_fail_whole_and_running_ones_can_be_cancelled(client: openai.OpenAI) -> None:
    bad = client.files.create(file=io.BytesIO(b'{"custom_id": "a"}\nnonsense\n'), purpose="batch")
    batch = client.batches.create(input_file_id=bad.id, endpoint="/v1/completions", completion_window="24h")
    failed = until(client, batch.id, "failed", "completed")
    assert [(e.line, e.code) for e in failed.errors.data] == [(1, "invalid_method"), (2, "invalid_json")]
    long = client.files.create(file=io.BytesIO(lines(30, 400)), purpose="batch")
    batch = client.batches.create(input_file_id=long.id, endpoint="/v1/completions", completion_window="24h")
    until(client, batch.id, "in_progress")
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = until(client, batch.id, "cancelled", "completed")
    assert ended.status == "cancelled" and ended.request_counts.total == 31
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled"):
        client.batches.cancel(batch.id)
    chat = client.completions.create(model=MODEL, prompt="Still", max_tokens=2)  # nothing is left behind
    assert chat.usage is not None


def test_an_impossible_structure_is_the_requests_fault_at_every_door(
    client: openai.OpenAI, cluster: RunningCluster
) -> None:
    """Also if the stage finds it out, on the way: who asks again would only see it again."""
    stops = list(range(1000))  # among them all that may come in a list of integers before its end
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3}
    wish: Any = {"model": MODEL, "prompt": "Three numbers:", "max_tokens": 24, "temperature": 0}
    extra: Any = {"stop_token_ids": stops, "structured_outputs": {"json": schema}}
    for stream in (False, True):
        with pytest.raises(openai.APIError, match="stop_token_ids") as bad:
            list(client.completions.create(**wish, stream=stream, extra_body=extra))
        assert (bad.value.param, bad.value.code) == ("stop_token_ids", "invalid_value")
        assert stream or isinstance(bad.value, openai.BadRequestError)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {**wish, **extra}}
    file = client.files.create(file=io.BytesIO(json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    done = until(client, batch.id, "completed", "failed")
    response = json.loads(client.files.content(done.error_file_id).text)["response"]
    assert (response["status_code"], response["body"]["error"]["param"]) == (400, "stop_token_ids")
    sampling = tidepipe.SamplingParams(
        temperature=0.0,
        max_tokens=24,
        stop_token_ids=tuple(stops),
        structure=Structure("json_schema", json.dumps(schema)),
    )
    with (
        tidepipe.Client(cluster.grpc) as own,
        pytest.raises(tidepipe.InvalidRequestError, match="stop_token_ids"),
    ):
        own.generate("Three numbers:", sampling)
