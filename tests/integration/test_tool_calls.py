"""Scripted outputs from tokens to the official client: thoughts and calls of tools, whole and streamed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import openai
import pytest
from grpc.aio import EOF
from pydantic import BaseModel

from tests.fakes.controller import fake_controller
from tests.fakes.router import running_router
from tests.fakes.text import ByteText
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.requests import make_request
from tidepipe.client.retry import RetryPolicy
from tidepipe.client.session import GenerationSession
from tidepipe.v1 import inference_pb2
from tidepipe_common.dialects import Gathering, Part
from tidepipe_common.types.request import ChatTurn
from tidepipe_common.types.sampling import SamplingParams

CALL = (
    "<think>\nParis, I guess.\n</think>\n\nI look.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par\\u00eds", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
BROKEN = '<tool_call>\n{"name": "get_weather", "arguments": {"city": Paris}}\n</tool_call>'
ASK: list[Any] = [{"role": "user", "content": "Weather?"}]

THINKING = partial(ByteText, "hermes", "<think>")


class Weather(BaseModel):
    """The arguments of a tool."""

    city: str
    days: int


TOOLS: list[Any] = [
    openai.pydantic_function_tool(Weather, name="get_weather"),
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


@contextlib.asynccontextmanager
async def answering(
    script: Callable[[str], str], text: Callable[[], ByteText] = THINKING
) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a router whose model answers each prompt as `script` has it."""

    def tokens(prompt: Sequence[int]) -> Sequence[int]:
        return script(bytes(prompt).decode()).encode()

    async with (
        running_router(lambda *_: text()) as router,
        fake_controller(script=tokens, context_length=9999) as instance,
    ):
        await instance.register(router.address)
        async with openai.AsyncOpenAI(base_url=f"http://{router.http}/v1", api_key="none") as client:
            yield client


async def streamed(client: openai.AsyncOpenAI, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """What a client adds up, and the chunks."""
    total: dict[str, Any] = {"content": "", "reasoning_content": "", "reasoning": "", "calls": {}}
    chunks = []
    async for chunk in await client.chat.completions.create(
        model="fake", messages=ASK, stream=True, **options
    ):
        chunks.append(chunk)
        for choice in chunk.choices:
            delta = choice.delta
            for name in ("content", "reasoning_content", "reasoning"):
                total[name] += getattr(delta, name, None) or ""
            for call in delta.tool_calls or ():
                assert call.function is not None
                if call.index not in total["calls"]:
                    assert call.id and call.type == "function" and call.function.name
                    total["calls"][call.index] = [call.id, call.function.name, ""]
                total["calls"][call.index][2] += call.function.arguments or ""
            total["reason"] = choice.finish_reason
            total["warning"] = getattr(choice, "warning", None)
    return total, chunks


async def test_thought_words_and_calls_whole_and_streamed() -> None:
    async with answering(lambda _: CALL) as client:
        whole = await client.chat.completions.create(model="fake", messages=ASK, tools=TOOLS)
        (choice,), usage = whole.choices, whole.usage
        message: Any = choice.message
        assert (message.content, message.reasoning_content, message.reasoning) == (
            "I look.", "Paris, I guess.", "Paris, I guess."
        )  # fmt: skip
        assert choice.finish_reason == "tool_calls" and not hasattr(choice, "warning")
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
        assert calls == [("get_weather", {"city": "París", "days": 2}), ("now", {})]
        assert usage is not None and usage.completion_tokens_details is not None
        assert usage.completion_tokens_details.reasoning_tokens == CALL.index("\n\nI")
        total, chunks = await streamed(client, tools=TOOLS, stream_options={"include_usage": True})
        assert (total["content"], total["reasoning_content"]) == (message.content, message.reasoning)
        assert total["reason"] == "tool_calls" and not chunks[-1].choices
        names = [call[1:] for call in total["calls"].values()]
        assert names == [[call.function.name, call.function.arguments] for call in message.tool_calls]
        assert len({call[0] for call in total["calls"].values()}) == 2
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage.completion_tokens_details == usage.completion_tokens_details
        # Without tools the same text has thoughts and words.
        plain = await client.chat.completions.create(
            model="fake", messages=ASK, extra_body={"include_reasoning": False}
        )
        assert plain.choices[0].message.content == CALL.partition("\n\n")[2]
        assert not hasattr(plain.choices[0].message, "reasoning")


async def test_helpers_of_the_client() -> None:
    async with answering(lambda _: CALL) as client:
        parsed = await client.chat.completions.parse(model="fake", messages=ASK, tools=TOOLS[:1] + TOOLS[:0])
        first = parsed.choices[0].message.tool_calls
        assert first is not None and first[0].function.parsed_arguments == Weather(city="París", days=2)
        async with client.chat.completions.stream(model="fake", messages=ASK, tools=TOOLS) as stream:
            events = [event.type async for event in stream]
            final = await stream.get_final_completion()
        assert "tool_calls.function.arguments.delta" in events
        assert events.count("tool_calls.function.arguments.done") == 2
        assert final.choices[0].message.tool_calls is not None


async def test_loop_of_two_turns() -> None:
    def model(prompt: str) -> str:
        return "It is sunny." if "tool: sunny" in prompt else CALL

    async with answering(model) as client:
        messages = list(ASK)
        for _ in range(3):
            answer = (
                await client.chat.completions.create(model="fake", messages=messages, tools=TOOLS)
            ).choices[0]
            if answer.finish_reason != "tool_calls":
                break
            messages.append(answer.message)
            called = answer.message.tool_calls or ()
            messages += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in called]
        assert (answer.message.content, len(messages)) == ("It is sunny.", 4)


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_broken_call_is_text_with_a_warning(reason: str) -> None:
    limits: Any = {} if reason == "stop" else {"max_tokens": len(BROKEN) - 30}
    async with answering(lambda _: BROKEN) as client:
        whole: Any = (
            await client.chat.completions.create(model="fake", messages=ASK, tools=TOOLS, **limits)
        ).choices[0]
        said = BROKEN[: limits.get("max_tokens")]
        assert (whole.message.content, whole.message.tool_calls) == (said, None)
        assert whole.finish_reason == reason and "given as text" in whole.warning
        total, chunks = await streamed(client, tools=TOOLS, **limits)
        # The name had been said before; the text comes all the same.
        assert total["content"] == said and list(total["calls"]) == [0]
        assert chunks[-1].choices[0].finish_reason == reason and total["warning"] == whole.warning


async def test_several_answers_and_thought_that_the_template_began() -> None:
    text = partial(ByteText, "qwen3_coder", "<think>", "<think>\n")
    script = "Hm.</think><tool_call>\n<function=now>\n</function>\n</tool_call>"
    async with answering(lambda _: script, text) as client:
        whole: Any = await client.chat.completions.create(
            model="fake", messages=ASK, tools=TOOLS, n=3, logprobs=True
        )
        for choice in whole.choices:
            assert (choice.message.content, choice.message.reasoning) == (None, "Hm.")
            assert [call.function.name for call in choice.message.tool_calls] == ["now"]
            assert len(choice.logprobs.content) == len(script)
        assert len({choice.message.tool_calls[0].id for choice in whole.choices}) == 3
        _, chunks = await streamed(client, tools=TOOLS, logprobs=True)
        told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
        assert sum(len(entry.content) for entry in told if entry) == len(script)


async def test_the_sdk_reads_the_same_also_when_its_stream_is_cut() -> None:
    def model(prompt: str) -> str:
        return "It is sunny." if "tool: sunny" in prompt else CALL

    tools = [json.dumps(tool) for tool in TOOLS]
    async with (
        running_router(lambda *_: THINKING()) as router,
        fake_controller(script=lambda prompt: model(bytes(prompt).decode()).encode()) as instance,
        AsyncClient(router.address) as client,
    ):
        await instance.register(router.address)
        whole = await client.chat(ASK, tools=tools)
        assert (whole.content, whole.reasoning, whole.text) == ("I look.", "Paris, I guess.", CALL)
        calls = [(call.name, call.parsed()) for call in whole.tool_calls]
        assert calls == [("get_weather", {"city": "París", "days": 2}), ("now", {})]
        turns = [ChatTurn("user", "Weather?"), whole.message]
        turns += [ChatTurn("tool", "sunny", tool_call_id=call.id) for call in whole.tool_calls]
        again = await client.chat(turns, tools=tools)
        assert (again.content, again.tool_calls) == ("It is sunny.", ())

        request = make_request(ASK, SamplingParams(max_tokens=700), tools=tools)
        session = GenerationSession(request, timeout_s=30, policy=RetryPolicy())
        parts: list[Part] = []
        while not session.finished:
            asked, _ = session.next_call()
            call = router.stub.Generate(asked)
            for _ in range(5):
                if (reply := await call.read()) is EOF:
                    break
                assert isinstance(reply, inference_pb2.GenerateResponse)
                event = session.accept(reply.delta)
                parts += event.parts if event else ()
            call.cancel()
        gathering = Gathering()
        gathering.add(parts)
        assert gathering.spoken() == whole.spoken[0]
