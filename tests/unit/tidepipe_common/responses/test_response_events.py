"""A response is the same however its answer comes cut, and its events add up to it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.dialects import Reading, dialect_named
from tidepipe_common.dialects.parts import CallArguments, CallBegins, CallEnds, Part, Thought, Words
from tidepipe_common.openai.responses import ResponseContext
from tidepipe_common.responses.body import parse_response
from tidepipe_common.responses.telling import Telling
from tidepipe_common.responses.writer import Event, head_of
from tidepipe_common.types.request import Answer, GenerationRequest, Usage
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams, TokenLogprob

TOOLS: list[Any] = [
    {"type": "function", "name": "f", "parameters": {"type": "object"}},
    {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
    {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "g", "parameters": None}]},
]
ASK = parse_response({"input": "hi", "tools": TOOLS})
THINK, END_THINK = "{", "}"


class MarkedReader:
    """Thoughts in braces; `!` calls f, `?` the custom tool, `*` the one of a namespace."""

    warning = ""

    def __init__(self) -> None:
        self.thoughts: list[tuple[int, int]] = []
        self._read = 0
        self._kind: type[Thought] | type[Words] = Words
        self._calls = 0

    def feed(self, text: str) -> Sequence[Part]:
        parts: list[Part] = []
        for character in text:
            self._read += 1
            if character in (THINK, END_THINK):
                self._kind = Thought if character == THINK else Words
                if character == THINK:
                    self.thoughts.append((self._read - 1, 1 << 30))
                elif self.thoughts:
                    self.thoughts[-1] = (self.thoughts[-1][0], self._read)
            elif character in "!?*":
                name, arguments = {
                    "!": ("f", "{}"),
                    "?": ("patch", '{"input": "ä"}'),
                    "*": ("ns__g", '{"a": 1}'),
                }[character]
                parts.append(CallBegins(self._calls, name))
                parts += [CallArguments(self._calls, one) for one in arguments]
                parts.append(CallEnds(self._calls))
                self._calls += 1
            else:
                parts.append(self._kind(character))
        return parts

    def end(self) -> Sequence[Part]:
        return []


TEXT = st.text(st.sampled_from("{}!?* \nabcä" + "x" * 30), max_size=90)


def told(text: str, cuts: Iterable[int], *, cut: bool, end: FinishReason = FinishReason.STOP) -> Any:
    """(events, body), of an answer of one token a byte that comes in pieces, with log-probabilities."""
    raw = text.encode()
    context = ResponseContext(
        GenerationRequest("r", "hi", SamplingParams(logprobs=0)),
        "m",
        1,
        token_bytes=lambda token: bytes([token]),
        reading=Reading(dialect_named("hermes", "<think>")),
    )
    head = head_of(ASK, "resp_r", "m", 1, stored=True)
    telling = Telling(head, ASK.tools, context, MarkedReader(), cut=cut)
    events = telling.begin()
    places = sorted({0, len(raw), *(place % (len(raw) + 1) for place in cuts)})
    shown = 0
    for begin, close in itertools.pairwise(places):
        piece = raw[begin:close]
        whole = len(raw[:close].decode(errors="ignore"))
        answer = Answer(
            0,
            tuple(piece),
            text[shown:whole],
            tuple(PositionLogprobs(TokenLogprob(token, -1.0), ()) for token in piece),
        )
        shown = whole
        events += telling.piece(answer)
    events += telling.piece(Answer(0, finish_reason=end))
    events += telling.rest()
    body = telling.body(Usage(2, len(raw)), 2)
    return [*events, telling.writer.ended(body)], body


def added_up(events: Sequence[Event]) -> list[Any]:
    """What a client has that listens to nothing but what begins and what is added."""
    output: list[Any] = []
    for event in events:
        of = event["type"].removeprefix("response.")
        if of == "output_item.added":
            assert event["output_index"] == len(output)
            output.append(event["item"] | {"status": "completed"})
        elif of == "content_part.added":
            output[-1]["content"] = [dict(event["part"])]
        elif of in ("output_text.delta", "reasoning_text.delta"):
            output[-1]["content"][0]["text"] += event["delta"]
        elif of == "function_call_arguments.delta":
            output[-1]["arguments"] += event["delta"]
        elif of == "custom_tool_call_input.delta":
            output[-1]["input"] += event["delta"]
        elif of.endswith("_text.done"):
            assert event["text"] == output[-1]["content"][0]["text"]
    return output


def bare(output: Sequence[Any]) -> list[Any]:
    """Without log-probabilities."""
    stripped: list[Any] = json.loads(json.dumps(output))
    for item in stripped:
        for part in item.get("content", []):
            part.pop("logprobs", None)
    return stripped


@given(TEXT, st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_events_add_up_to_the_same_response_however_the_answer_is_cut(
    text: str, cuts: list[int], cut: bool
) -> None:
    events, body = told(text, cuts, cut=cut)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert bare(added_up(events)) == bare(body["output"])
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == body["output"]
    assert events[-1]["type"] == "response.completed" and events[-1]["response"] == body
    assert body == told(text, [], cut=False)[1]
    if cut:
        # A listener who comes again gets the same events, whatever the pieces are then.
        assert events == told(text, [], cut=True)[0]


def test_an_answer_that_was_cut_says_which_item_is_not_whole() -> None:
    events, body = told("{why}half an ans", [], cut=False, end=FinishReason.LENGTH)
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert events[-1]["type"] == "response.incomplete"
    assert body["usage"]["output_tokens_details"] == {"reasoning_tokens": 5}


def test_calls_come_back_as_what_they_were_given_as() -> None:
    _, body = told("!?*", [], cut=False)
    function, custom, spaced = body["output"]
    assert (function["type"], function["name"], function["arguments"]) == ("function_call", "f", "{}")
    assert (custom["type"], custom["name"], custom["input"]) == ("custom_tool_call", "patch", "ä")
    assert (spaced["name"], spaced["namespace"]) == ("g", "ns")
    results = [
        {"type": f"{one['type']}_output", "call_id": one["call_id"], "output": "ok"} for one in body["output"]
    ]
    again = parse_response({"input": [*body["output"], *results], "tools": TOOLS}).chat_body()["messages"]
    calls = again[0]["tool_calls"]
    assert [one["function"]["name"] for one in calls] == ["f", "patch", "ns__g"]
    assert [one["tool_call_id"] for one in again[1:]] == [one["id"] for one in calls]


def test_items_that_an_sdk_writes_out_have_nulls_of_any_name() -> None:
    bodies = [
        {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "a", **more}], **more}],
            "text": {"format": {"type": "text", **more}, **more},
            "tools": [{**TOOLS[0], **more}],
            **more,
        }
        for more in ({}, {"of_next_year": None})
    ]
    assert parse_response(bodies[0]).chat_body() == parse_response(bodies[1]).chat_body()
