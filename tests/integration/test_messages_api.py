"""/v1/messages with Anthropic's own client: thoughts, words and calls of tools, whole and streamed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import pytest

from tests.integration.test_tool_calls import CALL, answering

ASK: list[Any] = [{"role": "user", "content": "Weather?"}]
TOOLS: list[Any] = [
    {"name": name, "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
    for name in ("get_weather", "now")
]


@contextlib.asynccontextmanager
async def asking(script: Callable[[str], str]) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Anthropic's client of a router whose model answers each prompt as `script` has it."""
    async with (
        answering(script) as openai,
        anthropic.AsyncAnthropic(
            base_url=str(openai.base_url).removesuffix("/v1/"), api_key="none", max_retries=0
        ) as client,
    ):
        yield client


async def test_whole_and_streamed_messages_are_the_same() -> None:
    async with asking(lambda _: CALL) as client:
        whole = await client.messages.create(model="fake", max_tokens=500, messages=ASK, tools=TOOLS)
        async with client.messages.stream(model="fake", max_tokens=500, messages=ASK, tools=TOOLS) as stream:
            events = [event.type async for event in stream]
            streamed = await stream.get_final_message()
    thought, words, weather, now = whole.content
    assert thought.type == "thinking" and thought.thinking == "Paris, I guess."
    assert words.type == "text" and words.text == "I look."
    assert weather.type == now.type == "tool_use"
    assert (weather.name, weather.input, now.name, now.input) == (
        "get_weather", {"city": "París", "days": 2}, "now", {}
    )  # fmt: skip
    assert weather.id != now.id
    assert whole.stop_reason == "tool_use" and whole.usage.output_tokens == len(CALL.encode())
    said = [block.model_dump(exclude={"id", "caller"}) for block in whole.content]
    assert [block.model_dump(exclude={"id", "caller"}) for block in streamed.content] == said
    assert streamed.stop_reason == "tool_use" and streamed.usage.output_tokens == whole.usage.output_tokens
    assert {"thinking", "text", "input_json", "content_block_stop", "message_stop"} <= set(events)


async def test_a_tools_result_is_answered_and_limits_are_told() -> None:
    def model(prompt: str) -> str:
        return "It is sunny." if "sunny" in prompt.partition("tool")[2] else CALL

    async with asking(model) as client:
        first = await client.messages.create(model="fake", max_tokens=500, messages=ASK, tools=TOOLS)
        call = first.content[2]
        assert call.type == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        history: list[Any] = [
            *ASK,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
        second = await client.messages.create(model="fake", max_tokens=500, messages=history, tools=TOOLS)
        assert [block.type for block in second.content] == ["thinking"] or second.content
        assert second.stop_reason == "end_turn"
        short = await client.messages.create(model="fake", max_tokens=3, messages=ASK)
        assert short.stop_reason == "max_tokens" and short.usage.output_tokens == 3
        cut = await client.messages.create(
            model="fake", max_tokens=99, messages=ASK, stop_sequences=["guess"]
        )
        assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == "guess"


async def test_errors_have_the_form_that_the_client_knows() -> None:
    async with asking(lambda _: CALL) as client:
        with pytest.raises(anthropic.BadRequestError) as wrong:
            await client.messages.create(model="fake", max_tokens=5, messages=[])
        body: Any = wrong.value.body
        assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
        assert "messages must not be empty" in body["error"]["message"]
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="other", max_tokens=5, messages=ASK)
        refused: list[tuple[str, str, dict[str, str], int]] = [
            ("GET", "/v1/messages", {}, 405),
            ("POST", "/v1/messages/batches", {}, 404),
            ("POST", "/v1/messages", {"content-type": "text/plain"}, 415),
            ("POST", "/v1/messages", {"origin": "https://elsewhere.example"}, 403),
        ]
        for method, path, headers, status in refused:  # by the routes, the body's reader and the gate
            answer = await client._client.request(method, path, content=b"{}", headers=headers)
            said = answer.json()
            assert answer.status_code == status and said["type"] == "error", path
            assert set(said["error"]) == {"type", "message"} and said["error"]["type"] != "api_error"
