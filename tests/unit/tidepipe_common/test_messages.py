"""The Messages API: bodies as those of chats, and blocks that do not depend on how an answer was cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.dialects.parts import CallArguments, CallBegins, CallEnds, Part, Thought, Words
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.messages.body import parse_message
from tidepipe_common.messages.writer import Event, MessageWriter
from tidepipe_common.types.request import Usage
from tidepipe_common.types.sampling import FinishReason

USAGE = Usage(prompt_tokens=7, output_tokens=3, cached_tokens=4)
TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}


def _body(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 5, "messages": list(messages), **fields}


def test_blocks_become_the_turns_of_a_chat() -> None:
    request = parse_message(
        _body(
            {
                "role": "user",
                "content": [{"type": "text", "text": "Rain?", "cache_control": {"type": "e"}}],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bern"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "no"}],
                    },
                    {"type": "text", "text": "So?"},
                ],
            },
            system=[{"type": "text", "text": "Be brief."}],
            tools=[TOOL],
            stop_sequences=["END"],
            metadata={"user_id": "u"},
        ),
        "id",
    )
    turns = [(turn.role, turn.content, turn.tool_call_id) for turn in request.turns]
    assert turns == [
        ("system", "Be brief.", ""),
        ("user", "Rain?", ""),
        ("assistant", "I look.", ""),
        ("tool", "no", "t1"),
        ("user", "So?", ""),
    ]
    assert json.loads(request.turns[2].tool_calls)[0]["function"]["arguments"] == {"city": "Bern"}
    assert json.loads(request.tools[0])["function"]["name"] == "weather"
    assert request.sampling.max_tokens == 5 and request.sampling.stop == ("END",) and request.client == "u"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stop": ["a"]}, "stop: is called stop_sequences here"),
        ({"stop_sequences": [""]}, "a stop string must not be empty"),
        ({"temperature": 1.5}, "temperature must be at most 1"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "this server runs none"),
        ({"tools": [{"name": "a"}]}, "tools.0.input_schema must be a JSON schema"),
        ({"tool_choice": {"type": "some"}}, "tool_choice must be"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens is required"),
        ({"messages": []}, "messages must not be empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "only text is supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]},
            "has no place in what the",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"max_token": 3}, "did you mean 'max_tokens'"),
        ({"prompts": 3}, "unknown field 'prompts'$"),  # the nearest name is refused as well
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_this_api(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        parse_message(_body({"role": "user", "content": "a"}) | fields, "id")


def _told(parts: list[Part]) -> tuple[list[Event], dict[str, Any]]:
    writer = MessageWriter("m", "model", lambda name, index: f"{name}-{index}")
    events = writer.begin(7)
    for part in parts:
        events += writer.say([part])
    last, message = writer.end(USAGE, FinishReason.STOP, None)
    return events + last, message


def _cut(draw: st.DrawFn, part: Part) -> list[Part]:
    if not isinstance(part, Thought | Words | CallArguments):
        return [part]
    at = draw(st.integers(0, len(part.text)))
    texts = [text for text in (part.text[:at], part.text[at:]) if text]
    return [CallArguments(part.index, t) if isinstance(part, CallArguments) else type(part)(t) for t in texts]


_TEXTS = st.text(" \nab", min_size=1, max_size=5)


@st.composite
def _answers(draw: st.DrawFn) -> tuple[list[Part], list[Part]]:
    parts: list[Part] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["words", "thought", "call", "broken"]), max_size=5)):
        if kind == "words":
            parts.append(Words(draw(_TEXTS)))
        elif kind == "thought":
            parts.append(Thought(draw(_TEXTS)))
        else:
            parts += [CallBegins(calls, "f"), CallArguments(calls, '{"a": 1}')]
            parts += [CallEnds(calls)] if kind == "call" else [Words('f{"a": 1}')]
            calls += 1
    return parts, [piece for part in parts for piece in _cut(draw, part)]


@given(_answers())
def test_blocks_do_not_depend_on_cuts_and_streams_add_up_to_them(
    answers: tuple[list[Part], list[Part]],
) -> None:
    whole, cut = answers
    _, message = _told(whole)
    events, again = _told(cut)
    assert again == message
    streamed: dict[int, dict[str, Any]] = {}
    texts: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(streamed)
            streamed[event["index"]] = event["content_block"]
            texts[event["index"]] = ""
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(streamed) - 1, "deltas are of the block that is open"
            texts[event["index"]] += next(str(v) for k, v in event["delta"].items() if k != "type")
    finished = []
    for index, block in streamed.items():
        match block["type"]:
            case "tool_use":
                finished.append(block | {"input": json.loads(texts[index])})
            case kind:
                finished.append(block | {"thinking" if kind == "thinking" else "text": texts[index]})
    # A block that turned out to be no call has been streamed; its text has come again as words.
    assert [block for block in finished if block in message["content"]] == message["content"]
    called = any(block["type"] == "tool_use" for block in message["content"])
    assert message["stop_reason"] == ("tool_use" if called else "end_turn")
    assert (
        message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == USAGE.prompt_tokens
    )


def test_blocks_that_an_sdk_writes_out_have_nulls_of_any_name() -> None:
    block = {"type": "text", "text": "a"}
    bodies = [
        {"max_tokens": 4, "messages": [{"role": "user", "content": [{**block, **more}], **more}], **more}
        for more in ({}, {"of_next_year": None})
    ]
    assert parse_message(bodies[0], "r") == parse_message(bodies[1], "r")
