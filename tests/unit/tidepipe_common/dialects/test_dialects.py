"""Readers of answers: samples of every family, over every cut, and what holds for any text."""

import json
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidepipe_common.dialects.families import FAMILIES, OFF, dialect_for, dialect_named
from tidepipe_common.dialects.parts import CallArguments, CallBegins, CallEnds, Part, Thought, Words
from tidepipe_common.dialects.reader import merged
from tidepipe_common.dialects.tools import Tools
from tidepipe_common.dialects.whole import read_whole
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.openai.bodies import parse_chat
from tidepipe_common.text.json_text import parse_json

SAMPLES: list[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "samples.toml").read_text())["sample"]


def tool(name: str, **properties: object) -> str:
    parameters = {"type": "object", "properties": properties}
    return json.dumps({"type": "function", "function": {"name": name, "parameters": parameters}})


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
TOOLS = (
    tool("get_weather", city=TEXT, days=NUMBER),
    tool("search", query=TEXT, filters={"type": "object"}, limit={"anyOf": [NUMBER, {"type": "null"}]}),
    tool("write_file", path=TEXT, content={"$ref": "#/$defs/text"}),
    tool("now"),
)


def read(
    dialect: str, pieces: Iterable[str], *, inside: bool = False, template: str = ""
) -> tuple[list[Part], str]:
    reader = dialect_named(dialect, template).reader(TOOLS, thinking=inside)
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return merged([*parts, *reader.end()]), reader.warning


def told(parts: Iterable[Part]) -> tuple[str, str, list[tuple[str, Any]], int]:
    """Thought, words, complete calls, and how many calls never ended."""
    thought, words = "", ""
    calls: dict[int, list[str]] = {}
    ended = []
    for part in parts:
        match part:
            case Thought(text):
                thought += text
            case Words(text):
                words += text
            case CallBegins(index, name):
                assert index == len(calls)
                calls[index] = [name, ""]
            case CallArguments(index, text):
                assert index == len(calls) - 1 and index not in ended
                calls[index][1] += text
            case CallEnds(index):
                ended.append(index)
    complete = [(calls[index][0], json.loads(calls[index][1])) for index in ended]
    assert all(isinstance(arguments, dict) for _, arguments in complete)
    for index, (name, arguments) in zip(ended, complete, strict=True):
        # It comes back in the next turn: as text in chats, as an object in messages.
        for said in (calls[index][1], arguments):
            back = {"id": "c", "type": "function", "function": {"name": name, "arguments": said}}
            body = json.dumps({"messages": [{"role": "assistant", "tool_calls": [back]}]}, allow_nan=False)
            parse_chat(parse_json(body, "the body"), "r")
    return thought, words, complete, len(calls) - len(ended)


def _null(value: object) -> object:
    """TOML has no null; a text stands for it."""
    if isinstance(value, dict):
        return {key: _null(item) for key, item in value.items()}
    return [_null(item) for item in value] if isinstance(value, list) else None if value == "null" else value


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample["about"] for sample in SAMPLES])
def test_sample_is_read_however_it_is_cut(sample: dict[str, Any]) -> None:
    text, kind = sample["text"], {key: sample[key] for key in ("inside", "template") if key in sample}
    whole, warning = read(sample["dialect"], [text], **kind)
    expected = [(name, _null(arguments)) for name, arguments in sample.get("calls", [])]
    assert told(whole) == (
        sample.get("thought", ""), sample.get("words", ""), expected, sample.get("broken", 0)
    )  # fmt: skip
    assert bool(warning) == ("warning" in sample) and sample.get("warning", "") in warning
    cuts = [[text[:at], text[at:]] for at in range(1, len(text))]
    cuts += [[text[at : at + width] for at in range(0, len(text), width)] for width in (1, 2, 3, 7)]
    for pieces in cuts:
        assert read(sample["dialect"], pieces, **kind) == (whole, warning), pieces


def test_every_family_has_a_sample() -> None:
    known = {dialect_named(sample["dialect"]).name for sample in SAMPLES}
    assert {family.name for family in FAMILIES} - known == {"mistral-list"}  # mistral's reader takes both


ODD = (r'{"city": "\ud800\ud83d\ude00\udc00"', r'"\ud800x"', "1e999", '{"a": 1, "a": 2}', "[" * 99 + "]" * 99)
TOKENS = sorted(
    {token for sample in SAMPLES for token in sample["text"].split()} | set('{"name<[(:,=\\\n') | set(ODD)
)
texts = st.lists(
    st.one_of(
        st.sampled_from(TOKENS), st.text(max_size=4), st.sampled_from([sample["text"] for sample in SAMPLES])
    ),
    max_size=12,
).map("".join)
families = st.sampled_from([family.name for family in FAMILIES])


@settings(max_examples=400)
@given(families, texts, st.data(), st.booleans())
def test_any_text_is_read_alike_however_it_is_cut(
    dialect: str, text: str, data: st.DataObject, inside: bool
) -> None:
    at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[begin:end] for begin, end in zip([0, *at], [*at, len(text)], strict=True)]
    whole = read(dialect, [text], inside=inside)
    told(whole[0])
    assert read(dialect, pieces, inside=inside) == whole == read(dialect, text, inside=inside)


@given(families, st.text(alphabet=st.characters(exclude_characters="<[{`f")), st.booleans())
def test_text_without_marks_is_whole(dialect: str, text: str, inside: bool) -> None:
    parts, _ = read(dialect, text, inside=inside)
    thought, words, _, _ = told(parts)
    inside = inside and dialect_named(dialect).thoughts is not None
    assert thought + words == (text.lstrip("\r\n") if inside else text)


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_form_that_calls_are_forced_into_is_read(family: Any) -> None:
    arguments = r'{"city": "a\"<\\ \ud83d\ude00\u00e9", "days": -1.5e3, "x": [[], {"k": [true, null]}]}'
    calls = [("get_weather", arguments), ("now", "{}")]
    parts, warning = read(family.name, [family.form.written(calls)])
    assert (told(parts), warning) == (("", "", [(name, json.loads(text)) for name, text in calls], 0), "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (r'{"city": "\ud800x\ud83d\ud83d\ude00\udc00"}', {"city": "\ufffdx\ufffd\U0001f600\ufffd"}),
        (r'{"x": {"a": 1, "a": 2}}', {"x": {"a": 2}}),
        (r'{"x": [1e999, -1e999]}', {"x": [sys.float_info.max, -sys.float_info.max]}),
        ('{"x": ' + "[" * 99 + "]" * 99 + "}", None),
    ],
)
@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_what_no_door_takes_back_is_repaired_or_no_call(family: Any, arguments: str, said: Any) -> None:
    """`told` sends it back."""
    text = family.form.written([("get_weather", arguments)])
    _, _, calls, _ = told(read(family.name, [text])[0])
    assert calls == ([] if said is None else [("get_weather", said)])


@pytest.mark.parametrize(
    ("template", "name", "thinks"),
    [
        ("{% if tools %}<tool_call>{% endif %}<think>", "hermes", True),
        ("<tool_call>\n<function=x>\n<parameter=y>", "qwen3-coder", False),
        ("<|start_header_id|>ipython {{ tools }}", "llama3-json", False),
        ("[AVAILABLE_TOOLS][TOOL_CALLS][", "mistral-list", False),
        ("[TOOL_CALLS]x[ARGS] [THINK]", "mistral", True),
        ("<|start|>assistant<|channel|>final<|message|>", "harmony", False),
        ("<｜tool▁calls▁begin｜>```json </think>", "deepseek-v3", True),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜> </think>", "deepseek-v3.1", True),
        ("<tool_call>{{ name }}<arg_key><arg_value><think>", "glm", True),
        ("<|im_start|>assistant", "json", False),
    ],
)
def test_dialect_is_told_by_the_template(template: str, name: str, thinks: bool) -> None:
    dialect = dialect_for(template)
    assert (dialect.name, dialect.thoughts is not None) == (name, thinks)


def test_names() -> None:
    assert dialect_named("Qwen3_Coder").name == "qwen3-coder"
    assert dialect_named("auto", "<tool_call>").name == "hermes"
    assert not dialect_named(OFF, "<think>").reads(tools=True)
    with pytest.raises(InvalidRequestError, match="hermes"):
        dialect_named("parrot")


def test_thoughts_may_be_another_family_s() -> None:
    mixed = dialect_named("hermes", "<think>", ("[THINK]", "<think>"), reasoning="mistral")
    spoken = read_whole(mixed.reader(TOOLS), "[THINK]hm[/THINK]So <think>.")
    assert (spoken.thought, spoken.words, mixed.special) == ("hm", "So <think>.", {"[THINK]"})
    assert not dialect_named("hermes", "<think>", reasoning="off").thinks
    assert dialect_named("off", reasoning="deepseek_r1").reads(tools=False)
    assert dialect_named("gpt-oss", reasoning="gpt-oss").harmony
    for names, says in ((("gpt-oss", "off"), "all harmony's"), (("hermes", "parrot"), "no reasoning parser")):
        with pytest.raises(InvalidRequestError, match=says):
            dialect_named(names[0], reasoning=names[1])


def test_which_special_tokens_a_reader_must_see() -> None:
    special = ["<|im_end|>", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<"]
    dialect = dialect_for("[TOOL_CALLS][ARGS][THINK]", special)
    assert dialect.kept_tokens(tools=False) == {"[THINK]", "[/THINK]"}
    assert dialect.kept_tokens(tools=True) == {"[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"}


def test_thought_that_the_prompt_began() -> None:
    dialect = dialect_for("<think></think>")
    assert dialect.thinking_after("<|assistant|><think>\n")
    assert not dialect.thinking_after("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("unit", ['{"', "<", "[", "<tool_call>", '{"name": ', " \n", "<think>", "(", "f(a="])
@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_work_grows_with_the_text_only(family: Any, unit: str) -> None:
    """Counted in characters that are looked at or copied: what is left to read after each piece is small."""
    reader = dialect_named(family.name).reader(TOOLS)
    longest = 0
    for _ in range(0, 4_000, len(unit)):
        reader.feed(unit)
        longest = max(longest, len(reader._source.text))  # type: ignore[attr-defined]
    reader.end()
    assert longest < 200


def test_values_without_quotes_become_what_the_schema_has() -> None:
    schema = {
        "type": "object",
        "properties": {
            "text": TEXT, "number": NUMBER, "maybe": {"type": ["string", "null"]},
            "choice": {"enum": ["1", "2"]}, "loop": {"$ref": "#/properties/loop"},
        },
    }  # fmt: skip
    tools = Tools([json.dumps({"function": {"name": "f", "parameters": schema}})])
    deep = "[" * 9999
    cases = [
        ("text", "5", '"5"'), ("number", "5", "5"), ("number", "x", '"x"'), ("maybe", "null", "null"),
        ("maybe", "5", '"5"'), ("choice", "1", '"1"'), ("unknown", "[1]", "[1]"), ("unknown", "a b", '"a b"'),
        ("loop", "True", "true"), ("unknown", "NaN", '"NaN"'), ("unknown", deep, json.dumps(deep)),
    ]  # fmt: skip
    for argument, text, value in cases:
        assert tools.value("f", argument, text) == value, argument
