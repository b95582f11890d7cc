"""The families, as data, and which of them a model is of: told by the marks in its chat template."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from tidepipe_common.dialects.dialect import HARMONY_MARKS, CallForm, CallIds, Dialect
from tidepipe_common.dialects.json_calls import JsonCalls, NamedJson
from tidepipe_common.dialects.pythonic import BracedCalls, PythonCalls
from tidepipe_common.dialects.reader import Grammar, Saying, ThoughtMarks
from tidepipe_common.dialects.source import Steps
from tidepipe_common.dialects.xml_calls import KeyedXmlCalls, XmlCalls
from tidepipe_common.errors import InvalidRequestError

AUTO, OFF = "auto", "off"
"""Instead of a family's name: by the template; nothing is looked for."""

_THINK = ThoughtMarks(("<think>",), ("</think>",))
_THOUGHTS = (
    _THINK,
    ThoughtMarks(("[THINK]",), ("[/THINK]",)),
    ThoughtMarks(("<seed:think>",), ("</seed:think>",)),
    ThoughtMarks(("<|channel>thought",), ("<channel|>",)),
    ThoughtMarks(("<|START_THINKING|>",), ("<|END_THINKING|>",)),
    ThoughtMarks(
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
    ),
)
"""Those that are looked for in templates and vocabularies, in this order."""
_OF_GRANITE = _THOUGHTS[5]


@dataclass(frozen=True)
class Several:
    """Several grammars of one family, told apart by their marks, and without one by what follows."""

    grammars: Sequence[Grammar]

    @property
    def opens(self) -> Sequence[str]:
        """Those of all."""
        return tuple(mark for grammar in self.grammars for mark in grammar.opens)

    @property
    def bare(self) -> str:
        """Those of all."""
        return "".join(grammar.bare for grammar in self.grammars)

    @property
    def dropped(self) -> Sequence[str]:
        """Those of all."""
        return tuple(mark for grammar in self.grammars for mark in grammar.dropped)

    def read(self, said: Saying, mark: str) -> Steps[None]:
        """Calls of the grammar that is meant."""
        if mark:
            wanted = [grammar for grammar in self.grammars if mark in grammar.opens]
        else:
            char = yield from said.source.skip_space()
            wanted = [grammar for grammar in self.grammars if char in grammar.bare]
        yield from wanted[0].read(said, mark)


@dataclass(frozen=True)
class PythonOrJson:
    """Lists of calls without a mark: Python's, or JSON."""

    opens: Sequence[str] = ()
    closes: Sequence[str] = ()
    bare: str = "["
    dropped: Sequence[str] = ()

    def read(self, said: Saying, mark: str) -> Steps[None]:
        """As what stands in the list has it."""
        listed = (yield from said.source.skip_space()) == "["
        if listed:
            said.source.at += 1
        if (yield from said.source.skip_space()) == "{":
            yield from JsonCalls(closes=self.closes).read_items(said, mark, listed=listed)
        else:
            yield from PythonCalls(closes=self.closes).read_items(said, mark, listed=listed)


@dataclass(frozen=True)
class Family:
    """One row of the table.

    template: all of one of these stand in its models' templates. aliases: other names. inner: marks that its
    grammar reads besides those with which calls begin. thoughts: where no template tells.
    """

    name: str
    grammar: Grammar | None
    form: CallForm
    template: tuple[tuple[str, ...], ...]
    aliases: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    thoughts: ThoughtMarks | None = _THINK
    harmony: bool = False
    ids: CallIds = "usual"


def _json_form(
    opening: str,
    closing: str,
    *,
    arguments: str = "arguments",
    before: str = "",
    between: str = "",
    after: str = "",
    many: bool = True,
) -> CallForm:
    return CallForm(
        f'{opening}{{"name": "', f'", "{arguments}": ', f"}}{closing}", before, between, after, many
    )


_TOOL_CALL = _json_form("<tool_call>\n", "\n</tool_call>", between="\n")
_DSML = "｜DSML｜"

FAMILIES = (
    Family(
        "harmony",
        None,
        CallForm(
            "<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "<|call|>", many=False
        ),
        (("<|channel|>", "<|message|>"),),
        ("gpt-oss", "openai"),
        harmony=True,
    ),
    Family(
        "gemma4",
        BracedCalls(("<|tool_call>",), ("<tool_call|>",), '<|"|>'),
        CallForm("<|tool_call>call:", "", "<tool_call|>"),
        (("<|tool_call>", "<tool_call|>"),),
        inner=("<tool_call|>", '<|"|>'),
        thoughts=ThoughtMarks(("<|channel>thought",), ("<channel|>",)),
    ),
    Family(
        "functiongemma",
        BracedCalls(("<start_function_call>",), ("<end_function_call>",), "<escape>"),
        CallForm("<start_function_call>call:", "", "<end_function_call>"),
        (("<start_function_call>",),),
        inner=("<end_function_call>", "<escape>"),
    ),
    Family(
        "deepseek-v3.2",
        XmlCalls(
            (f"<{_DSML}function_calls>", f"<{_DSML}tool_calls>"),
            (f"</{_DSML}function_calls>", f"</{_DSML}tool_calls>"),
            function=f"<{_DSML}invoke name=",
            function_end=f"</{_DSML}invoke>",
            parameter=f"<{_DSML}parameter name=",
            parameter_end=f"</{_DSML}parameter>",
        ),
        CallForm(
            f'<{_DSML}invoke name="',
            '">\n',
            f"\n</{_DSML}invoke>\n",
            f"<{_DSML}function_calls>\n",
            "",
            f"</{_DSML}function_calls>",
        ),
        ((_DSML,),),
        ("deepseek-v4", "deepseek-v32"),
        inner=(_DSML,),
    ),
    Family(
        "deepseek-v3",
        NamedJson(
            ("<｜tool▁call▁begin｜>",),
            ("<｜tool▁sep｜>",),
            ("<｜tool▁call▁end｜>",),
            ("<｜tool▁calls▁begin｜>",),
            ("<｜tool▁calls▁end｜>",),
            kind_first=True,
        ),
        CallForm(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            "\n```json\n",
            "\n```<｜tool▁call▁end｜>",
            "<｜tool▁calls▁begin｜>",
            "\n",
            "<｜tool▁calls▁end｜>",
        ),
        (("<｜tool▁calls▁begin｜>", "```json"),),
        ("deepseek-r1",),
        inner=("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    ),
    Family(
        "deepseek-v3.1",
        NamedJson(
            ("<｜tool▁call▁begin｜>",),
            ("<｜tool▁sep｜>",),
            ("<｜tool▁call▁end｜>",),
            ("<｜tool▁calls▁begin｜>",),
            ("<｜tool▁calls▁end｜>",),
            kind_first=True,
        ),
        CallForm(
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁begin｜>",
            "",
            "<｜tool▁calls▁end｜>",
        ),
        (("<｜tool▁calls▁begin｜>",), ("<｜tool▁call▁begin｜>",)),
        ("deepseek-v31",),
        inner=("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    ),
    Family(
        "kimi-k2",
        NamedJson(
            ("<|tool_call_begin|>",),
            ("<|tool_call_argument_begin|>",),
            ("<|tool_call_end|>",),
            ("<|tool_calls_section_begin|>",),
            ("<|tool_calls_section_end|>",),
            prefix="functions.",
            numbered=True,
        ),
        CallForm(
            "<|tool_call_begin|>functions.",
            ":0<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            "<|tool_calls_section_begin|>",
            "",
            "<|tool_calls_section_end|>",
        ),
        (("<|tool_call_begin|>",),),
        ("kimi",),
        ids="numbered",
        inner=("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
    ),
    Family(
        "minimax",
        XmlCalls(
            ("<minimax:tool_call>",),
            ("</minimax:tool_call>",),
            function="<invoke name=",
            function_end="</invoke>",
            parameter="<parameter name=",
            parameter_end="</parameter>",
        ),
        CallForm(
            '<invoke name="',
            '">\n',
            "\n</invoke>\n",
            "<minimax:tool_call>\n",
            "",
            "</minimax:tool_call>",
        ),
        (("<minimax:tool_call>",), ("]~b]", "<invoke name=")),
        ("minimax-m2",),
        inner=("</minimax:tool_call>",),
    ),
    Family(
        "seed-oss",
        XmlCalls(
            ("<seed:tool_call>",),
            ("</seed:tool_call>",),
            function="<function=",
            function_end="</function>",
            parameter="<parameter=",
            parameter_end="</parameter>",
            lines=True,
        ),
        CallForm("<seed:tool_call>\n<function=", ">\n", "\n</function>\n</seed:tool_call>", between="\n"),
        (("<seed:tool_call>",),),
        inner=("</seed:tool_call>",),
        thoughts=_THOUGHTS[2],
    ),
    Family(
        "glm",
        KeyedXmlCalls(),
        _TOOL_CALL,
        (("<arg_key>", "<arg_value>"),),
        ("glm-4.5", "glm-4.7", "glm45", "glm47"),
        inner=("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    Family(
        "qwen3-coder",
        XmlCalls(
            ("<tool_call>",),
            ("</tool_call>",),
            function="<function=",
            function_end="</function>",
            parameter="<parameter=",
            parameter_end="</parameter>",
            lines=True,
        ),
        CallForm("<tool_call>\n<function=", ">\n", "\n</function>\n</tool_call>", between="\n"),
        (("<function=", "<parameter="),),
        ("qwen3-xml", "nemotron-v3", "step3p5", "mimo"),
        inner=("</tool_call>",),
    ),
    Family(
        "mistral",
        NamedJson(("[TOOL_CALLS]",), ("[ARGS]", "[CALL_ID]", "{"), listed=True),
        CallForm("[TOOL_CALLS]", "[ARGS]", ""),
        (("[TOOL_CALLS]", "[ARGS]"),),
        ("mistral-named",),
        ids="short",
        inner=("[ARGS]", "[CALL_ID]"),
        thoughts=_THOUGHTS[1],
    ),
    Family(
        "mistral-list",
        NamedJson(("[TOOL_CALLS]",), ("[ARGS]", "[CALL_ID]", "{"), listed=True),
        _json_form("", "", before="[TOOL_CALLS][", between=", ", after="]"),
        (("[TOOL_CALLS]",),),
        ("mistral-old",),
        ids="short",
        inner=("[ARGS]", "[CALL_ID]"),
    ),
    Family(
        "llama4-pythonic",
        PythonOrJson(("<|python_start|>",), ("<|python_end|>",)),
        _json_form("", "", before="<|python_start|>[", between=", ", after="]<|python_end|>"),
        (("<|header_start|>", "<|python_start|>"),),
        ("llama4",),
        inner=("<|python_end|>",),
    ),
    Family(
        "llama3-json",
        Several(
            (
                PythonOrJson(("<|python_tag|>",), (), "[{"),
                XmlCalls(
                    (),
                    (),
                    function="<function=",
                    function_end="</function>",
                    parameter="<parameter=",
                    parameter_end="</parameter>",
                ),
            )
        ),
        _json_form("", "", arguments="parameters", between="; ", many=False),
        (("<|python_tag|>",), ("Environment: ipython",), ("<|start_header_id|>ipython",)),
        ("llama3", "llama4-json", "llama"),
    ),
    Family(
        "lfm2",
        PythonOrJson(("<|tool_call_start|>",), ("<|tool_call_end|>",), ""),
        _json_form("", "", before="<|tool_call_start|>[", between=", ", after="]<|tool_call_end|>"),
        (("<|tool_call_start|>",), ("<|tool_list_start|>",)),
        inner=("<|tool_call_end|>",),
    ),
    Family(
        "olmo3",
        PythonOrJson(("<function_calls>",), ("</function_calls>",), ""),
        _json_form("", "", before="<function_calls>\n", between="\n", after="\n</function_calls>"),
        (("<function_calls>",),),
    ),
    Family(
        "gemma3",
        Several((PythonOrJson(("```tool_code",), ("```",), ""), PythonOrJson((), ()))),
        _json_form("", "", before="```tool_code\n[", between=", ", after="]\n```"),
        (("tool_code",),),
        ("gemma", "pythonic"),
    ),
    Family(
        "phi4-mini",
        JsonCalls(("functools", "<|tool_call|>"), ("<|/tool_call|>",)),
        _json_form("", "", before="functools[", between=", ", after="]"),
        (("<|tool|>", "<|/tool|>"), ("functools",)),
        ("phi4-mini-json",),
        inner=("<|/tool_call|>",),
    ),
    Family(
        "granite",
        JsonCalls(("<|tool_call|>", "<tool_call>"), ("<|/tool_call|>", "</tool_call>")),
        _json_form("", "", before="<|tool_call|>[", between=", ", after="]"),
        (("<|tool_call|>",),),
    ),
    Family(
        "nemotron",
        JsonCalls(("<TOOLCALL>",), ("</TOOLCALL>",)),
        _json_form("", "", before="<TOOLCALL>[", between=", ", after="]</TOOLCALL>"),
        (("<TOOLCALL>",),),
    ),
    Family(
        "longcat",
        JsonCalls(("<longcat_tool_call>",), ("</longcat_tool_call>",)),
        _json_form("<longcat_tool_call>\n", "\n</longcat_tool_call>", between="\n"),
        (("<longcat_tool_call>",),),
        inner=("</longcat_tool_call>",),
    ),
    Family(
        "jamba",
        JsonCalls(("<tool_calls>", "<tool_call>"), ("</tool_calls>", "</tool_call>")),
        _json_form("", "", before="<tool_calls>[", between=", ", after="]</tool_calls>"),
        (("<tool_calls>",),),
        ("hunyuan", "hunyuan-a13b"),
        inner=("</tool_calls>", "</tool_call>"),
    ),
    Family(
        "command",
        JsonCalls(
            ("<|START_ACTION|>",), ("<|END_ACTION|>",), dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>")
        ),
        CallForm(
            '{"tool_call_id": "0", "tool_name": "',
            '", "parameters": ',
            "}",
            "<|START_ACTION|>[",
            ", ",
            "]<|END_ACTION|>",
        ),
        (("<|START_ACTION|>",),),
        ("cohere-command3", "cohere"),
        inner=("<|END_ACTION|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        thoughts=_THOUGHTS[4],
    ),
    Family(
        "internlm",
        JsonCalls(("<|action_start|>",), ("<|action_end|>",), then="<|plugin|>"),
        _json_form(
            "<|action_start|><|plugin|>", "<|action_end|>", arguments="parameters", between="\n", many=False
        ),
        (("<|action_start|>",),),
        ("internlm2",),
        inner=("<|plugin|>", "<|action_end|>"),
    ),
    Family(
        "apertus",
        JsonCalls(("<|tools_prefix|>",), ("<|tools_suffix|>",), keyed=True),
        CallForm('{"', '": ', "}", "<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
        (("<|tools_prefix|>",),),
        inner=("<|tools_suffix|>",),
    ),
    Family(
        "granite-20b-fc",
        JsonCalls(("<function_call>",), ("</function_call>",)),
        _json_form("<function_call> ", "", between=" "),
        (("<function_call>",),),
        inner=("</function_call>",),
    ),
    Family(
        "hermes",
        JsonCalls(("<tool_call>",), ("</tool_call>",)),
        _TOOL_CALL,
        (("<tool_call>",),),
        ("qwen2.5", "qwen3", "qwen3-json", "smollm3", "ernie45", "granite4"),
        inner=("</tool_call>",),
    ),
    Family(
        "json",
        JsonCalls(("<tool_call>",), ("</tool_call>",), bare="{["),
        _TOOL_CALL,
        (),
        ("generic",),
        inner=("</tool_call>",),
    ),
)
"""In the order in which templates are tried: rarer marks come first. The last is for all others."""

_BY_NAME = {name: family for family in FAMILIES for name in (family.name, *family.aliases)}


def names() -> list[str]:
    """What `dialect_named` knows, without other names of the same."""
    return [AUTO, OFF, *(family.name for family in FAMILIES)]


def dialect_for(chat_template: str, special_tokens: Collection[str] = ()) -> Dialect:
    """The dialect of a model with this template.

    special_tokens: those that are no text for readers, as its tokenizer spells them.
    """
    for family in FAMILIES:
        if any(all(mark in chat_template for mark in marks) for marks in family.template):
            break
    return _dialect(family, _thoughts(chat_template, special_tokens), special_tokens)


def dialect_named(
    name: str, chat_template: str = "", special_tokens: Collection[str] = (), *, reasoning: str = AUTO
) -> Dialect:
    """The dialect of this name, for a model with this template; `auto`: as `dialect_for`; `off`: words only.

    reasoning: the family that thinks as this model does; `auto`: as the template says; `off`: thoughts are
    words. InvalidRequestError says which names there are, and which do not go together.
    """
    key, thinking = _key(name), _key(reasoning)
    if key == AUTO:
        dialect = dialect_for(chat_template, special_tokens)
    elif key == OFF:
        dialect = Dialect(OFF)
    else:
        family = _family(name, "tool")
        thoughts = _thoughts(chat_template, special_tokens) if chat_template else family.thoughts
        dialect = _dialect(family, thoughts, special_tokens)
    if thinking == AUTO:
        return dialect
    thinker = None if thinking == OFF else _family(reasoning, "reasoning")
    if dialect.harmony or (thinker is not None and thinker.harmony):
        if dialect.harmony and thinker is not None and thinker.harmony:
            return dialect
        raise InvalidRequestError(
            f"the reasoning parser {reasoning!r} does not go with the tool parser {dialect.name!r}: what is "
            "harmony's is all harmony's; leave the reasoning parser auto"
        )
    return _thinking(dialect, None if thinker is None else _thoughts_of(thinker), special_tokens)


def check_reasoning_parser(name: str) -> None:
    """InvalidRequestError if there is no family of that name to think as."""
    if _key(name) not in (AUTO, OFF):
        _family(name, "reasoning")


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _family(name: str, what: str) -> Family:
    family = _BY_NAME.get(_key(name))
    if family is None:
        raise InvalidRequestError(f"no {what} parser {name!r}; there are {', '.join(names())}")
    return family


def _thoughts_of(family: Family) -> ThoughtMarks | None:
    return _OF_GRANITE if family.name == "granite" else family.thoughts


def _thinking(dialect: Dialect, thoughts: ThoughtMarks | None, special_tokens: Collection[str]) -> Dialect:
    """The same one, but for how it writes thoughts."""
    return replace(dialect, thoughts=thoughts, special=_special(thoughts, special_tokens))


def _special(thoughts: ThoughtMarks | None, special_tokens: Collection[str]) -> frozenset[str]:
    around = () if thoughts is None else (*thoughts.begins, *thoughts.ends)
    return frozenset(token for token in special_tokens if _in_any(token, around))


def _thoughts(chat_template: str, special_tokens: Collection[str]) -> ThoughtMarks | None:
    for marks in _THOUGHTS:
        if any(mark in chat_template or mark in special_tokens for mark in (*marks.begins, *marks.ends)):
            return marks
    return None


def _dialect(family: Family, thoughts: ThoughtMarks | None, special_tokens: Collection[str]) -> Dialect:
    if family.harmony:
        special = HARMONY_MARKS.intersection(special_tokens)
        return Dialect(family.name, form=family.form, harmony=True, special=special)
    grammar = family.grammar
    assert grammar is not None
    calls = (*grammar.opens, *family.inner)
    return Dialect(
        family.name,
        grammar=grammar,
        thoughts=thoughts,
        form=family.form,
        ids=family.ids,
        special=_special(thoughts, special_tokens),
        special_of_calls=frozenset(token for token in special_tokens if _in_any(token, calls)),
    )


def _in_any(token: str, marks: Sequence[str]) -> bool:
    """True if the token is one of the marks, or a part of one: some marks are a token and a word."""
    return any(token == mark or (len(token) > 1 and mark.startswith(token)) for mark in marks)
