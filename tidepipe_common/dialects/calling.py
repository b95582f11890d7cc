"""Calls that a model is made to write, as a form that its outputs are held to.

What a form forces is what the dialect's reader reads as calls with these arguments, and where text is free it
has nothing that the reader would take for another call. Schemas and a dialect go in, a form
(`tidepipe_common.structures.forms`) comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tidepipe_common.dialects.dialect import CallForm, Dialect
from tidepipe_common.dialects.harmony import CHANNEL, END, MARKS, MESSAGE, START
from tidepipe_common.types.structure import Form

Thinking = Literal["open", "perhaps", "no"]
"""Whether an answer begins within a thought, which its prompt has opened, or may begin with one."""

_FINAL = f"{CHANNEL}final{MESSAGE}"
_LINES: Form = {"regex": r"\n{0,2}"}
"""Behind a thought."""
_NOTES = frozenset({"title", "description", "default", "examples", "example", "$comment"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


@dataclass(frozen=True, slots=True)
class Function:
    """A function that may be called. parameters: what its arguments, an object, conform to."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def without_notes(schema: Any) -> Any:
    """The schema without what only explains it."""
    if isinstance(schema, list):
        return [without_notes(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key in ("const", "enum", "required"):
            made[key] = value
        elif key in _NAMED and isinstance(value, dict):
            made[key] = {name: without_notes(part) for name, part in value.items()}
        elif key not in _NOTES:
            made[key] = without_notes(value)
    return made


def thinking_behind(dialect: Dialect, prompt_end: str) -> Thinking:
    """How an answer begins behind a prompt with this end."""
    if dialect.harmony:
        return "perhaps"
    if dialect.thoughts is None:
        return "no"
    if dialect.thinking_after(prompt_end):
        return "open"
    return "no" if prompt_end.rstrip().endswith(dialect.thoughts.ends) else "perhaps"


def required(dialect: Dialect, functions: Sequence[Function], parallel: bool, thinking: Thinking) -> Form:
    """A call, or several if `parallel`, and nothing besides but a thought. The dialect must have a form."""
    return _Writing(dialect, functions, parallel).required(thinking)


def allowed(
    dialect: Dialect,
    functions: Sequence[Function],
    parallel: bool,
    thinking: Thinking,
    otherwise: Form | None = None,
) -> Form:
    """What the model likes, but what begins as a call is one. otherwise: the form of other answers."""
    return _Writing(dialect, functions, parallel).allowed(thinking, otherwise)


def behind_thought(dialect: Dialect, thinking: Thinking, form: Form) -> Form:
    """An answer of this form, which may be preceded by a thought."""
    return _Writing(dialect, (), False).answer(thinking, form)


class _Writing:
    def __init__(self, dialect: Dialect, functions: Sequence[Function], parallel: bool) -> None:
        self._dialect = dialect
        self._parallel = parallel
        call = dialect.form or CallForm("", "", "")
        opens = () if dialect.grammar is None else tuple(dialect.grammar.opens)
        head = call.before + call.begin
        self._mark = max((mark for mark in opens if head.startswith(mark)), key=len, default="")
        bounds: dict[str, Any] = {}
        if others := [mark for mark in opens if mark != self._mark]:
            bounds["without"] = others
        self._in_thought = dict(bounds)
        if dialect.grammar is not None and dialect.grammar.bare:
            bounds["first"] = dialect.grammar.bare
        self._bounds = bounds
        self._calls = self._written(call, functions)
        self._called = self._behind(self._bounds)

    def required(self, thinking: Thinking) -> Form:
        calls: Form = [{"marks": self._mark}, self._calls] if self._mark else self._calls
        if self._dialect.harmony:
            return [_harmony("analysis"), calls]
        return self._after_thought(thinking, calls)

    def allowed(self, thinking: Thinking, otherwise: Form | None) -> Form:
        text: Form = {"text": True, **self._bounds}
        if self._dialect.harmony:
            text = {"text": True, "without": list(MARKS)}
            final: Form = [{"marks": _FINAL}, text if otherwise is None else otherwise]
            return [_harmony("analysis", "commentary"), {"any": [final, self._calls]}]
        if not self._mark:
            form: Form = {"any": [self._calls, text if otherwise is None else otherwise]}
        elif otherwise is not None:
            form = {"any": [[{"marks": self._mark}, self._calls], otherwise]}
        elif self._parallel:
            form = [{"repeat": self._called, "least": 0}, text]
        else:
            form = {"any": [self._called, text]}
        return self._after_thought(thinking, form)

    def answer(self, thinking: Thinking, form: Form) -> Form:
        if self._dialect.harmony:
            return [_harmony("analysis"), {"marks": _FINAL}, form]
        return self._after_thought(thinking, form)

    def _behind(self, bounds: Mapping[str, Any]) -> Form:
        """Calls behind other text, where they have a mark."""
        return [{"until": self._mark, **bounds}, self._calls] if self._mark else ""

    def _after_thought(self, thinking: Thinking, form: Form) -> Form:
        marks = self._dialect.thoughts
        if marks is None or thinking == "no":
            return form
        ways = [[{"until": end, **self._in_thought}, _LINES, form] for end in marks.ends]
        if self._mark and self._dialect.form is not None and self._calls:
            ways.append(self._behind(self._in_thought))  # type: ignore[arg-type]  # a call ends a thought, too
        thought: Form = {"any": ways}
        return thought if thinking == "open" else {"any": [[{"marks": marks.begins[0]}, thought], form]}

    def _written(self, call: CallForm, functions: Sequence[Function]) -> Form:
        """Calls, without the mark with which the first one begins."""
        if not functions:
            return ""
        ways: list[Form] = [
            [
                function.name,
                {"marks": call.middle},
                {"schema": {"type": "object", **function.parameters}, "of": function.name},
                {"marks": call.end},
            ]
            for function in functions
        ]
        one: Form = {"any": ways}
        head: Form = {"marks": (call.before + call.begin)[len(self._mark) :]}
        if not (self._parallel and call.many):
            return [head, one, {"marks": call.after}]
        between: Form = {"marks": call.between + call.begin}
        return [head, {"repeat": one, "between": between}, {"marks": call.after}]


def _harmony(*channels: str) -> Form:
    """Messages in these channels, perhaps none."""
    text: Form = {"until": END, "without": [mark for mark in MARKS if mark != END]}
    ways: list[Form] = [
        [{"marks": f"{CHANNEL}{channel}{MESSAGE}"}, text, {"marks": f"{START}assistant"}]
        for channel in channels
    ]
    return {"repeat": {"any": ways}, "least": 0}
