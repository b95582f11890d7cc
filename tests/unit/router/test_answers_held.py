"""What a chat's template gets, what answers are held to behind it, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from router.text.tokenizer import TextProcessor
from tests.fakes.byte_tokenizer import byte_tokenizer
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.types.request import PLAIN_TEMPLATE, ChatTurn, GenerationRequest
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.thought import TemplateOptions
from tidepipe_common.types.tool_choice import ToolChoice

THINKING = """{%- if tools %}<tool_call>{{ tools | tojson }}{% endif %}
{%- for message in messages %}{{ message.role }}:{{ message.content }};{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}
{%- if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}"""
EFFORT = "{{ reasoning_effort | default('medium') }}{% for m in messages %}{{ m.content }}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
SPECIAL = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
HELLO = (ChatTurn("user", "Hi"),)


def look(**fields: Any) -> str:
    parameters = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
    return json.dumps({"type": "function", "function": {"name": "look", "parameters": parameters, **fields}})


def model(template: str) -> TextProcessor:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    return TextProcessor(PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template))


def prompt(text: TextProcessor, options: TemplateOptions, tools: tuple[str, ...] = ()) -> str:
    return text.decode(text.encode_chat(HELLO, tools, None, options), skip_special_tokens=False)


def held(text: TextProcessor, options: TemplateOptions = PLAIN_TEMPLATE, **fields: Any) -> SamplingParams:
    sampling = fields.pop("sampling", SamplingParams())
    request = GenerationRequest("r", HELLO, sampling, template=options, **fields)
    request.check()
    ids = text.encode_chat(HELLO, request.tools, None, options)
    return text.held(request, ids, sampling)


@pytest.mark.parametrize(
    ("template", "options", "end"),
    [
        (THINKING, TemplateOptions(), "assistant:"),
        (THINKING, TemplateOptions("none"), "</think>\n\n"),
        (THINKING, TemplateOptions("high"), "assistant:"),
        (THINKING, TemplateOptions("high", '{"enable_thinking": false}'), "</think>\n\n"),
        (THINKING, TemplateOptions(opened=False), "user:Hi;"),
        (EFFORT, TemplateOptions("xhigh"), "highHi"),
        (EFFORT, TemplateOptions("low"), "lowHi"),
        (EFFORT, TemplateOptions(), "mediumHi"),
        (PLAIN, TemplateOptions("high"), "user:Hi;"),
    ],
)
def test_wishes_reach_the_template(template: str, options: TemplateOptions, end: str) -> None:
    assert prompt(model(template), options).endswith(end)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('{"messages": []}', "has no argument 'messages'; it has: enable_thinking"),
        ('{"enable_thinkin": true}', "has no argument"),
        ('{"eos_token": "x"}', "has no argument"),
        ('{"enable_thinking": [[[[[[[[1]]]]]]]]}', "nested 8 levels"),
        ("[]", "must be an object"),
    ],
)
def test_other_arguments_are_refused(arguments: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat_template_kwargs") as caught:
        prompt(model(THINKING), TemplateOptions("", arguments))
    assert message in str(caught.value)


def test_a_template_without_tools_tells_them_in_words() -> None:
    said = prompt(model(PLAIN), TemplateOptions(), (look(),))
    assert said.startswith("system:") and look() in said and '<tool_call>\n{"name": "NAME"' in said
    shown = prompt(model(THINKING), TemplateOptions(), (look(),))
    assert shown.startswith("<tool_call>[") and "system:" not in shown


def test_what_is_held_to_a_form() -> None:
    text = model(THINKING)
    assert held(text, tools=(look(),)).structure is None
    assert held(text, tools=(look(strict=False),)).structure is None
    forced = held(text, tools=(look(),), tool_choice=ToolChoice("required")).structure
    assert forced is not None and forced.field == "tools" and "required" in forced.text
    for fields in ({"strict": True}, {}):
        choice = ToolChoice(parallel=bool(fields))
        free = held(text, tools=(look(**fields),), tool_choice=choice).structure
        assert free is not None and ("required" in free.text) == bool(fields)
    wish = SamplingParams(structure=Structure("json_schema", "{}"))
    behind = held(text, sampling=wish).structure
    assert behind is not None and behind.kind == "composed" and behind.field == "response_format"
    assert held(text, TemplateOptions("none"), sampling=wish).structure == wish.structure
    assert held(model(PLAIN.replace("role", "name")), sampling=wish).structure is not None


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"tool_choice": ToolChoice("required", ("loook",))}, "none of the tools", "tool_choice"),
        ({"tools": (), "tool_choice": ToolChoice("required")}, "there are no tools", "tool_choice"),
        ({"tools": (look(), look()), "tool_choice": ToolChoice("required")}, "two tools", "tools"),
        ({"tools": (look(name="a b"),), "tool_choice": ToolChoice("required")}, "have a name of", "tools"),
        (
            {"tools": (look(parameters={"type": "array"}),), "tool_choice": ToolChoice("required")},
            "must be an object",
            "tools",
        ),
        (
            {"tools": (look(parameters={"enum": ["x" * 70_000]}),), "tool_choice": ToolChoice("required")},
            "may have 65536 bytes",
            "tools",
        ),
        ({"tools": (look(), look())}, "two tools", "tools"),
        ({"tools": ("[]",), "tool_choice": ToolChoice("required")}, "tools.0 must have {", "tools"),
        ({"tools": (look(strict=True),), "sampling": SamplingParams(stop=("}",))}, "stop strings", "stop"),
    ],
)
def test_choices_that_make_no_sense_are_refused(fields: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        held(model(PLAIN), **{"tools": (look(),), **fields})
    assert message in str(caught.value) and caught.value.param == param


def test_two_tools_of_one_name_are_refused_by_whatever_reads_a_chat() -> None:
    """Where only tokens are wanted (/tokenize, count_tokens) as well."""
    for template in (THINKING, PLAIN):
        with pytest.raises(InvalidRequestError, match="two tools have the name 'look'"):
            prompt(model(template), TemplateOptions(), (look(), look(strict=True)))


def test_a_thought_is_bounded_where_there_may_be_one() -> None:
    text = model(THINKING)
    ids = {mark: text.encode(mark)[0] for mark in SPECIAL}
    bounded = held(text, sampling=SamplingParams(max_reasoning_tokens=5))
    assert bounded.thought is not None and not bounded.thought.open
    assert bounded.thought.begins == (ids["<think>"],) and bounded.thought.forced == (ids["</think>"],)
    assert set(bounded.thought.ends) == {ids["</think>"], ids["<tool_call>"]}
    off = held(text, TemplateOptions("none"), sampling=SamplingParams(max_reasoning_tokens=5))
    assert off.thought is None
    always = model(PLAIN + "assistant:<think>\n")
    free = held(always)
    assert free.thought is not None and not free.thought_bounded and not free.needs_history
    ended = held(always, TemplateOptions("none"))  # the template cannot be told
    assert ended.thought is not None and ended.thought.open and ended.max_reasoning_tokens == 0
