"""Request bodies: what is understood, and that all else is refused in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.openai.bodies import ChatBody, CompletionBody, parse_chat, parse_completion
from tidepipe_common.openai.fields import IGNORED, REFUSED_IN_CHAT, REFUSED_IN_COMPLETIONS
from tidepipe_common.openai.validation import MAX_MESSAGE_CHARACTERS
from tidepipe_common.types.request import ChatTurn, GenerationRequest
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.thought import TemplateOptions
from tidepipe_common.types.tool_choice import ToolChoice

HELLO = [{"role": "user", "content": "Hello"}]


def test_all_fields_of_a_chat() -> None:
    request = parse_chat(
        {
            "model": "m",
            "messages": [
                {"role": "developer", "content": "Be brief.", "name": None},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "refusal": None, "tool_calls": [], "name": "Bot"},
            ],
            "max_completion_tokens": 5,
            "temperature": 0,
            "top_p": 0.5,
            "n": 2,
            "stop": "x",
            "presence_penalty": 1,
            "frequency_penalty": -1.5,
            "logit_bias": {"7": 3},
            "seed": -1,
            "logprobs": True,
            "top_logprobs": 3,
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": "someone",
            "metadata": {"a": "b"},
            "tools": [],
            "tool_choice": "none",
            "response_format": {"type": "text"},
            "top_k": -1,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [9],
            "skip_special_tokens": False,
            "include_stop_str_in_output": True,
            "return_token_ids": True,
        },
        "r1",
    )
    assert request == GenerationRequest(
        request_id="r1",
        prompt=(ChatTurn("system", "Be brief."), ChatTurn("user", "a\nb"), ChatTurn("assistant", "c", "Bot")),
        sampling=SamplingParams(
            temperature=0.0,
            top_p=0.5,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=1.0,
            frequency_penalty=-1.5,
            seed=2**64 - 1,
            logit_bias={7: 3.0},
            max_tokens=5,
            min_tokens=2,
            stop_token_ids=(9,),
            stop=("x",),
            ignore_eos=True,
            logprobs=3,
            n=2,
        ),
        model="m",
        keep_special_tokens=True,
        marks=True,
        stream=True,
        stream_usage=True,
        return_token_ids=True,
        include_stop=True,
        client="someone",
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("hi", "hi"), ([1, 2], (1, 2)), (["hi"], "hi"), ([[1, 2]], (1, 2))],
)
def test_completion_defaults_and_prompt_forms(prompt: object, expected: object) -> None:
    request = parse_completion({"prompt": prompt, "temperature": None}, "r")
    default = SamplingParams(max_tokens=16)
    assert request == GenerationRequest("r", expected, default, piece_gap_s=1.0, clamp_max_tokens=True)  # type: ignore[arg-type]
    assert not parse_completion({"prompt": prompt, "max_tokens": 16}, "r").clamp_max_tokens
    assert parse_chat({"messages": HELLO}, "r").sampling == SamplingParams()


def test_several_prompts_are_one_request() -> None:
    request = parse_completion({"prompt": ["hi", [1, 2], "ho"], "n": 2}, "r")
    assert request.prompts == ("hi", (1, 2), "ho") and request.characters == 4
    request.check()


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        ({"response_format": {"type": "json_object", "schema": {"a": 1}}}, "json_schema", '{"a": 1}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}}},
            "json_schema",
            '{"a": 1}',
        ),
        ({"structured_outputs": {"regex": "a+", "json": None}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a|b", "c"]}}, "regex", r"a\|b|c"),
        ({"guided_json": '{"b": 2}'}, "json_schema", '{"b": 2}'),
        ({"guided_json": True}, "json_schema", "{}"),
        ({"guided_json": "true"}, "json_schema", "{}"),
    ],
)
def test_forms_of_structures(fields: dict[str, Any], kind: Any, text: str) -> None:
    assert parse_completion({"prompt": "x", **fields}, "r").sampling.structure == Structure(kind, text)


def test_tools_and_their_calls_travel_as_json() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "é"}'}}
    history = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "seen", "tool_call_id": "c1"},
    ]
    request = parse_chat({"messages": history, "tools": [tool], "tool_choice": "auto"}, "r")
    assert [json.loads(one) for one in request.tools] == [tool]
    _, asked, seen = request.prompt
    assert isinstance(asked, ChatTurn) and isinstance(seen, ChatTurn)
    assert json.loads(asked.tool_calls)[0]["function"]["arguments"] == {"at": "é"}
    assert (asked.content, seen.tool_call_id) == ("", "c1")
    assert parse_chat({"messages": history, "tools": [tool], "tool_choice": "none"}, "r").tools == ()


LOOK: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
NAMED: Any = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, ToolChoice()),
        ({"parallel_tool_calls": False}, ToolChoice(parallel=False)),
        ({"tool_choice": "required"}, ToolChoice("required")),
        ({"tool_choice": NAMED}, ToolChoice("required", ("look",), parallel=False)),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}},
            ToolChoice("auto", ("look",)),
        ),
    ],
)
def test_ways_to_choose_tools(fields: dict[str, Any], choice: ToolChoice) -> None:
    request = parse_chat({"messages": HELLO, "tools": [LOOK], **fields}, "r")
    assert request.tool_choice == choice
    request.check()


@pytest.mark.parametrize(
    ("fields", "template", "most"),
    [
        ({"reasoning_effort": "low"}, TemplateOptions("low"), None),
        ({"reasoning": {"effort": "none", "max_tokens": 7}}, TemplateOptions("none"), 7),
        ({"max_reasoning_tokens": 7, "thinking_token_budget": 7}, TemplateOptions(), 7),
        ({"chat_template_kwargs": {"a": "é"}}, TemplateOptions("", '{"a": "\\u00e9"}'), None),
        ({"add_generation_prompt": False}, TemplateOptions(opened=False), None),
        ({"chat_template_kwargs": {}, "continue_final_message": False}, TemplateOptions(), None),
    ],
)
def test_ways_to_say_how_much_to_think(
    fields: dict[str, Any], template: TemplateOptions, most: int | None
) -> None:
    request = parse_chat({"messages": HELLO, **fields}, "r")
    assert request.template == template and request.sampling.max_reasoning_tokens == most
    request.check()


CHAT_ERRORS: list[tuple[object, str, str | None]] = [
    ([], "the body must be a JSON object, got a list", None),
    ({}, "messages is required", "messages"),
    ({"messages": []}, "messages must not be empty", "messages"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages.0.role must be 'system', ", "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.content is required", "messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content part 0 has type 'image_url'; only 'text' is supported",
        "messages",
    ),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
        "tool_calls call 0 must have a function with a name",
        "messages",
    ),
    ({"messages": HELLO, "max_tokens": "5"}, "max_tokens must be an integer, got a string", "max_tokens"),
    ({"messages": HELLO, "max_tokens": True}, "max_tokens must be an integer, got true", "max_tokens"),
    (
        {"messages": HELLO, "max_tokens": 5.0},
        "max_tokens must be an integer, got the number 5.0",
        "max_tokens",
    ),
    ({"messages": HELLO, "max_tokens": 0}, "max_tokens must be at least 1, got 0", "max_tokens"),
    ({"messages": HELLO, "max_tokens": 10**12}, "max_tokens must be at most 2147483647", "max_tokens"),
    (
        {"messages": HELLO, "max_tokens": 1, "max_completion_tokens": 2},
        "contradict each other",
        "max_completion_tokens",
    ),
    ({"messages": HELLO, "temperature": -1}, "temperature must be in [0, 100], got -1", "temperature"),
    ({"messages": HELLO, "temperature": float("inf")}, "temperature must be in [0, 100]", "temperature"),
    ({"messages": HELLO, "top_p": 0}, "top_p must be in (0, 1], got 0", "top_p"),
    ({"messages": HELLO, "n": 0}, "n must be in [1, 16], got 0", "n"),
    ({"messages": HELLO, "n": -1}, "n must be in [1, 16], got -1", "n"),
    ({"messages": HELLO, "max_tokens": -1}, "max_tokens must be at least 1, got -1", "max_tokens"),
    ({"messages": HELLO, "cache_salt": ""}, "cache_salt must not be empty", "cache_salt"),
    ({"messages": HELLO, "service_tier": True}, "got true", "service_tier"),
    (
        {"messages": HELLO, "stop": ["a", 1]},
        "stop must be a string or a list of strings, got a list with",
        "stop",
    ),
    ({"messages": HELLO, "stop": "\ud800"}, "unpaired surrogates", "stop"),
    ({"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias must have token ids as names", "logit_bias"),
    ({"messages": HELLO, "logit_bias": {"01": 1, "1": -1}}, "must have token ids as names", "logit_bias"),
    ({"messages": HELLO, "seed": -(2**63) - 1}, "seed must be in [-2^63, 2^64)", "seed"),
    ({"messages": HELLO, "seed": 2**64}, "seed must be in [-2^63, 2^64)", "seed"),
    ({"messages": HELLO, "logit_bias": {"1": 101}}, "logit_bias[1] must be in [-100, 100]", "logit_bias"),
    ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs needs logprobs: true", "top_logprobs"),
    (
        {"messages": HELLO, "logprobs": True, "top_logprobs": 21},
        "top_logprobs must be at most 20, got 21",
        "top_logprobs",
    ),
    ({"messages": HELLO, "stream_options": {}}, "only allowed with stream: true", "stream_options"),
    (
        {"messages": HELLO, "stream": True, "stream_options": {"include_use": True}},
        "unknown field 'stream_options.include_use'",
        "stream_options",
    ),
    (
        {"messages": HELLO, "tempreature": 1},
        "unknown field 'tempreature'; did you mean 'temperature'?",
        "tempreature",
    ),
    ({"messages": HELLO, "tools": [{}]}, 'must have {"type": "function"', "tools"),
    (
        {"messages": HELLO, "tools": [{**LOOK, "function": {**LOOK["function"], "strict": 1}}]},
        "entry 0 must have true or false as strict",
        "tools",
    ),
    (
        {"messages": HELLO, "tools": [{**LOOK, "function": {"name": "look", "parameters": []}}]},
        "entry 0 must have a JSON schema as parameters, got a list",
        "tools",
    ),
    ({"messages": HELLO, "tool_choice": "required"}, "only allowed with tools", "tool_choice"),
    ({"messages": HELLO, "tools": [], "tool_choice": "required"}, "only allowed with tools", "tool_choice"),
    ({"messages": HELLO, "tools": [LOOK], "tool_choice": "any"}, "got 'any'", "tool_choice"),
    (
        {"messages": HELLO, "tools": [LOOK], "tool_choice": {"type": "function", "name": "look"}},
        "must name a function as",
        "tool_choice",
    ),
    ({"messages": HELLO, "reasoning_effort": "much"}, "reasoning_effort must be 'none'", "reasoning_effort"),
    (
        {"messages": HELLO, "reasoning_effort": "low", "reasoning": {"effort": "high"}},
        "reasoning_effort and reasoning contradict each other",
        "reasoning",
    ),
    (
        {"messages": HELLO, "chat_template_kwargs": {"a": "x" * 9000}},
        "more than 8192 characters",
        "chat_template_kwargs",
    ),
    (
        {"messages": HELLO, "chat_template_kwargs": {"a": [[[[[[[[]]]]]]]]}},
        "nested 8 levels deep",
        "chat_template_kwargs",
    ),
    (
        {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True},
        "contradict each other",
        "continue_final_message",
    ),
    ({"messages": HELLO, "response_format": {"type": "xml"}}, "got 'xml'", "response_format"),
    ({"messages": HELLO, "guided_regex": "a", "stop": "b"}, "stop strings would cut", "stop"),
    ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "json_schema", "response_format"),
    (
        {"messages": HELLO, "response_format": {"type": "json_object"}, "guided_regex": "a"},
        "response_format and guided_regex contradict each other",
        "guided_regex",
    ),
    (
        {"messages": HELLO, "guided_choice": ["a"], "ignore_eos": True},
        "ignore_eos and response_format contradict each other",
        "ignore_eos",
    ),
    (
        {"messages": HELLO, "guided_json": {"type": "boolean"}, "min_tokens": 10},
        "min_tokens and response_format contradict each other",
        "min_tokens",
    ),
]

COMPLETION_ERRORS: list[tuple[object, str, str | None]] = [
    ({"prompt": []}, "prompt must not be an empty list", "prompt"),
    ({"prompt": ["a"] * 257}, "prompt may have 256 entries, got 257", "prompt"),
    (
        {"prompt": ["a"] * 100, "n": 3},
        "prompt may have 256 answers to all prompts together, got 300",
        "prompt",
    ),
    (
        {"prompt": ["a", [1, [2]]]},
        "its entry 1 must be a string or a list of token ids, got a list",
        "prompt",
    ),
    ({"prompt": ["a", []]}, "its entry 1 must not be an empty list", "prompt"),
    ({"prompt": [1, -1]}, "prompt must have token ids in [0, 2147483647]", "prompt"),
    ({"prompt": [1, True]}, "prompt must be a string or a list of token ids", "prompt"),
    ({"prompt": [["a"]]}, "got a list with a string in it", "prompt"),
    ({"prompt": [1, 2.0]}, "prompt must be a string or a list of token ids", "prompt"),
    ({"prompt": "a", "logprobs": 21}, "logprobs must be in [0, 20], got 21", "logprobs"),
    ({"prompt": "a", "logprobs": True}, "logprobs must be an integer, got true", "logprobs"),
    ({"prompt": "a", "best_of": 3}, "best_of: not supported; use n", "best_of"),
    ({"prompt": "a", "suffix": "b"}, "suffix: inserting text is not supported", "suffix"),
    ({"prompt": "a", "guided_json": False}, "guided_json has the schema false", "guided_json"),
    ({"prompt": "a", "guided_json": "{'a': 1}"}, "not usable: not JSON", "guided_json"),
    ({"prompt": "a", "guided_json": '{"const": "\\ud800"}'}, "const is not valid Unicode", "guided_json"),
    ({"prompt": "a", "min_tokens": 20}, "min_tokens (20) must not exceed max_tokens (16)", "min_tokens"),
]


@pytest.mark.parametrize(
    ("parse", "body", "message", "param"),
    [(parse_chat, *case) for case in CHAT_ERRORS] + [(parse_completion, *case) for case in COMPLETION_ERRORS],
)
def test_what_is_wrong_is_said(parse: Any, body: object, message: str, param: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(body, "r")
    assert message in str(caught.value)
    assert caught.value.param == param


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.sampled_from([2**31, 2**63, 2**64, 10**400, -(10**400)])
    | st.floats()
    | st.text(alphabet="a\n7\ud800", max_size=4)
    | st.just("x" * 5000)
)
json_values = st.recursive(
    scalars,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=2),
    max_leaves=5,
)
fields = st.sampled_from(
    sorted(
        {
            *ChatBody.model_fields,
            *CompletionBody.model_fields,
            *REFUSED_IN_CHAT,
            *REFUSED_IN_COMPLETIONS,
            *IGNORED,
        }
    )
)


@given(st.dictionaries(fields, json_values, max_size=3), st.booleans(), st.booleans())
def test_any_body_is_understood_or_refused_in_one_line(body: dict[str, Any], chat: bool, whole: bool) -> None:
    if whole:
        body = ({"messages": HELLO} if chat else {"prompt": "hi"}) | body
    try:
        request = (parse_chat if chat else parse_completion)(body, "r")
    except InvalidRequestError as error:
        assert 0 < len(str(error)) <= MAX_MESSAGE_CHARACTERS
        assert "\n" not in str(error)
    else:
        request.sampling.check()
        str(request).encode()  # nothing that cannot travel


def test_null_asks_for_nothing_by_whatever_name() -> None:
    """SDKs send answers back with all fields that a message has in their release, most of them null."""
    unknown = {"of_next_year": None}
    said = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b"},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    more = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", **unknown}], **unknown},
            {"role": "assistant", "content": "b", **unknown},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {}, **unknown},
            **unknown,
        },
        "stream": True,
        "stream_options": {"include_usage": True, **unknown},
        **unknown,
    }
    assert parse_chat(more, "r") == parse_chat(said, "r")
    with pytest.raises(InvalidRequestError, match=r"unknown field 'messages\.0\.of_next_year'"):
        parse_chat({"messages": [{"role": "user", "content": "a", "of_next_year": False}]}, "r")


def test_an_answer_of_nothing_can_be_sent_back() -> None:
    request = parse_chat({"messages": [*HELLO, {"role": "assistant", "content": None}, *HELLO]}, "r")
    assert request.prompt[1] == ChatTurn("assistant", "")


def test_marks_of_caches_change_nothing() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    request = parse_chat({"messages": [{"role": "user", "content": [part]}]}, "r")
    assert request.prompt == (ChatTurn("user", "a"),)
