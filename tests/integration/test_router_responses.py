"""/v1/responses by OpenAI's own client, over a router whose instance has a script for a model."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.resources.responses import AsyncResponses

from router.models import models
from tests.fakes.controller import FakeController, fake_controller, scripted_text
from tests.fakes.router import RunningRouter, running_router
from tests.fakes.text import ByteText

MODEL: Any = {"model": "fake", "temperature": 0}


@contextlib.asynccontextmanager
async def asking(router: RunningRouter) -> AsyncIterator[AsyncResponses]:
    url = f"http://{router.http}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client.responses


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with fake_controller() as one:
        yield one


async def test_responses_are_kept_and_gone_on_from(controller: FakeController, tmp_path: Path) -> None:
    async with running_router(data_dir=str(tmp_path)) as router, asking(router) as responses:
        await controller.register(router.address)
        first = await responses.create(
            **MODEL,
            input="one",
            instructions="Be brief.",
            max_output_tokens=5,
            include=["message.output_text.logprobs"],
            metadata={"a": "b"},
        )
        prompt = "system: Be brief.\nuser: one\n"
        assert first.output_text == scripted_text(list(prompt.encode()), 5)
        assert first.status == "incomplete" and first.incomplete_details.reason == "max_output_tokens"  # type: ignore[union-attr]
        assert len(first.output[0].content[0].logprobs) == 5  # type: ignore[union-attr, arg-type, index]
        async with responses.stream(
            **MODEL, input="two", previous_response_id=first.id, max_output_tokens=7
        ) as stream:
            events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        second: Any = events[-1]
        second = second.response
        # What was said goes on; instructions do not.
        prompt = f"user: one\nassistant: {first.output_text}\nuser: two\n"
        assert second.output_text == scripted_text(list(prompt.encode()), 7)
        told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert told == second.output_text
        for one in (first, second):
            kept = await responses.retrieve(one.id)
            assert kept.to_dict() == one.to_dict()
        items = [item async for item in await responses.input_items.list(second.id, limit=1)]
        assert [item.content[0].text for item in items] == ["two"]  # type: ignore[union-attr, index]
        # An item may be named instead of repeated.
        third = await responses.create(
            **MODEL,
            input=[{"type": "item_reference", "id": first.output[0].id}],
            max_output_tokens=3,  # type: ignore[typeddict-item]
        )
        prompt = f"assistant: {first.output_text}\n"
        assert third.output_text == scripted_text(list(prompt.encode()), 3)
        unkept = await responses.create(**MODEL, input="one", store=False, max_output_tokens=3)
        for gone in (unkept, first):
            if gone is first:
                await responses.delete(first.id)
            with pytest.raises(openai.NotFoundError):
                await responses.retrieve(gone.id)
        with pytest.raises(openai.BadRequestError, match="any more") as refusal:
            await responses.create(**MODEL, input="three", previous_response_id=second.id)
        assert refusal.value.code == "previous_response_not_found"


async def test_what_goes_on_in_the_background_outlives_client_and_router(
    controller: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.step_s = 0.01
    text = scripted_text(list(b"user: go\n"), 150)
    keyed: Any = {
        **MODEL,
        "background": True,
        "max_output_tokens": 5,
        "extra_headers": {"Idempotency-Key": "once"},
    }
    async with running_router(data_dir=str(tmp_path)) as router, asking(router) as responses:
        await controller.register(router.address)
        stream = await responses.create(
            **MODEL, input="go", background=True, stream=True, max_output_tokens=150
        )
        heard: list[Any] = []
        async for event in stream:
            heard.append(event)
            if len(heard) == 7:
                break
        await stream.close()
        name = heard[0].response.id
        stream = await responses.create(
            **MODEL, input="gone", background=True, stream=True, max_output_tokens=900
        )
        numbers: list[int] = []
        async for event in stream:
            numbers.append(event.sequence_number)
            if len(numbers) == 1:
                await responses.delete(event.response.id)  # type: ignore[union-attr]
        assert event.type == "error" and numbers == list(range(len(numbers)))
        cancelled = await responses.create(**MODEL, input="stop", background=True, max_output_tokens=900)
        assert cancelled.status == "queued"
        assert (await responses.cancel(cancelled.id)).status == "cancelled"
        assert (await responses.cancel(cancelled.id)).status == "cancelled"
        assert (await responses.retrieve(name)).status == "in_progress"
        one, other = await asyncio.gather(*(responses.create(**keyed, input="a") for _ in range(2)))
        assert one.id == other.id
        with pytest.raises(openai.UnprocessableEntityError):
            await responses.create(**keyed, input="b")
    async with (
        running_router(data_dir=str(tmp_path)) as router,
        asking(router) as responses,
        asyncio.timeout(30),
    ):
        await controller.register(router.address)
        last = heard[-1].sequence_number
        heard += [event async for event in await responses.retrieve(name, stream=True, starting_after=last)]
        assert [event.sequence_number for event in heard] == list(range(len(heard)))
        told = "".join(event.delta for event in heard if event.type == "response.output_text.delta")
        assert told == text == (await responses.retrieve(name)).output_text
        again = [event async for event in await responses.retrieve(name, stream=True)]
        assert [event.to_dict() for event in again] == [event.to_dict() for event in heard]
        assert (await responses.retrieve(cancelled.id)).status == "cancelled"
        assert (await responses.create(**keyed, input="a")).id == one.id
        monkeypatch.setattr(models, "SETTLING_S", 0.0)  # all models are there
        with pytest.raises(openai.NotFoundError):
            await responses.create(model="other", input="go", background=True)


SCRIPTS = {
    "Weather?": "<think>\nI must look.\n</think>\n\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Par\\u00eds"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "note", "arguments": {"input": "asked\\nonce"}}\n</tool_call>',
    "Sunny.": "It is sunny.",
}
TOOLS: Any = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False},
    {"type": "custom", "name": "note", "description": "Write something down."},
]


@pytest.mark.parametrize("background", [False, True])
async def test_a_loop_of_calls_with_thoughts(background: bool, tmp_path: Path) -> None:
    """Kept and gone on from, and with everything sent back, as Codex has it."""

    def script(prompt: Sequence[int]) -> Sequence[int]:
        asked = bytes(prompt).decode()
        return SCRIPTS[max(SCRIPTS, key=asked.rfind)].encode()

    async with (
        running_router(lambda *_: ByteText("hermes", "<think>"), data_dir=str(tmp_path)) as router,
        fake_controller(script=script, context_length=9999) as instance,
        asking(router) as responses,
    ):
        await instance.register(router.address)
        asked: Any = {**MODEL, "input": "Weather?", "tools": TOOLS, "background": background}
        events = [event async for event in await responses.create(**asked, stream=True)]
        last: Any = events[-1]
        called = last.response
        thought, call, note = called.output
        assert thought.content[0].text.strip() == "I must look."
        assert json.loads(call.arguments) == {"city": "París"} and call.name == "weather"
        assert (note.type, note.name, note.input) == ("custom_tool_call", "note", "asked\nonce")
        told = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(told) == call.arguments
        marked = "<think>\nI must look.\n</think>"
        assert called.usage.output_tokens_details.reasoning_tokens == len(marked)
        assert called.to_dict() == (await responses.retrieve(called.id)).to_dict()
        if background:
            again = [event async for event in await responses.retrieve(called.id, stream=True)]
            assert [event.to_dict() for event in again] == [event.to_dict() for event in events]
        results: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."},
            {
                "type": "custom_tool_call_output",
                "call_id": note.call_id,
                "output": [{"type": "input_text", "text": "Sunny."}],
            },
        ]
        kept = await responses.create(**MODEL, input=results, tools=TOOLS, previous_response_id=called.id)
        history: Any = [{"role": "user", "content": "Weather?"}, *called.to_dict()["output"], *results]
        sent = await responses.create(**MODEL, input=history, tools=TOOLS, store=False)
        assert kept.output_text == sent.output_text == "It is sunny."
        assert kept.usage.input_tokens == sent.usage.input_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({"conversation": "c"}, "conversation", "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools", "the web is not searched"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools", "mcp"),
        ({"background": True, "store": False}, "store", "needs store: true"),
        ({"background": True}, "background", "--data-dir"),
        ({"previous_response_id": "resp_x"}, "previous_response_id", "--data-dir"),
        ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
        ({"max_output_tokens": 10**6}, "input", "context length"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "?"}}}},
            "text.format",
            "type",
        ),
        ({"inclued": []}, "inclued", "did you mean 'include'"),
        ({"input": [{}]}, "input", "input.0 has the type null; here there are message"),
        ({"input": [{"content": "hi"}]}, "input", "input.0.role must be one of"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "only text"),
    ],
)
async def test_what_cannot_be_had_is_refused_with_a_word(
    controller: FakeController, body: dict[str, Any], param: str, word: str
) -> None:
    async with running_router() as router:  # which keeps nothing
        await controller.register(router.address)
        async with httpx.AsyncClient(base_url=f"http://{router.http}", trust_env=False) as http:
            answer = await http.post("/v1/responses", json={"input": "hi", **body})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and word in error["message"], error
