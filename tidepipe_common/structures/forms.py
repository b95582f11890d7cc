"""Forms: texts with schemas in them, as a model writes calls of tools, or an answer behind a thought.

A form is JSON, so that it travels as one string, and small: routers make it of a model's dialect
(`tidepipe_common.dialects.calling`); whoever tries it out or keeps to it turns it into the library's grammar
here. A node of it is

* a string: just this text; a list: its parts, one after the other;
* `{"marks": text}`: text of the dialect's; a special token in it is that token, which no other text becomes;
* `{"until": text}`: any text up to this mark, as a token or in letters, and the mark; `{"text": true}`: any
  text. Both may have `"without": [texts]`, which are not in it, and `"first": characters`: it begins, spaces
  apart, with none of these;
* `{"any": [...]}`: one of these;
* `{"repeat": node, "between": node}`: once or several times; with `"least": 0` perhaps not at all;
* `{"schema": {...}, "of": name}`: JSON that conforms; `of`: whose arguments it is;
* `{"regex": text}`: text that this expression matches;
* `{"part": number, "is": node}`: the node, which `{"part": number}` stands for from here on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llguidance import LLTokenizer

from tidepipe_common.types.structure import Form

_ANY = "/(?s:.*)/"
_MARK = re.compile(r"<[^<>\s]{1,64}>|\[[A-Z_/]{1,32}\]")
"""What may be a special token."""
_MIN_SHARED = 64
"""Characters of a node that is worth a number."""


def written(form: Form) -> str:
    """The form as JSON, in which what stands in it several times is written once."""
    seen: Counter[int] = Counter()
    _count(form, seen)
    numbers: dict[int, int] = {}
    return json.dumps(_shared(form, seen, numbers), separators=(",", ":"))


def _count(node: Form, seen: Counter[int]) -> None:
    if isinstance(node, str):
        return
    seen[id(node)] += 1
    if seen[id(node)] == 1:
        for part in _parts(node):
            _count(part, seen)


def _parts(node: Any) -> list[Form]:
    if isinstance(node, list):
        return node
    return [*node.get("any", ()), *(node[key] for key in ("repeat", "between", "is") if key in node)]


def _shared(node: Form, seen: Counter[int], numbers: dict[int, int]) -> Form:
    if isinstance(node, str):
        return node
    number = numbers.get(id(node))
    if number is not None:
        return {"part": number}
    again = seen[id(node)] > 1 and len(json.dumps(node)) >= _MIN_SHARED
    if again:
        numbers[id(node)] = number = len(numbers)
    made: Form
    if isinstance(node, list):
        made = [_shared(part, seen, numbers) for part in node]
    else:
        made = dict(node)
        if "any" in node:
            made["any"] = [_shared(part, seen, numbers) for part in node["any"]]
        for key in ("repeat", "between"):
            if key in node:
                made[key] = _shared(node[key], seen, numbers)
    return {"part": number, "is": made} if again else made


def schemas_in(form: Form) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schemas, each with whose it is."""
    if isinstance(form, dict) and "schema" in form:
        yield form.get("of", ""), form["schema"]
    elif not isinstance(form, str):
        for part in _parts(form):
            yield from schemas_in(part)


def lark(
    form: Form, tokenizer: LLTokenizer | None, schema: Callable[[Any], str], regex: Callable[[str], str]
) -> str:
    """The grammar. schema, regex: what stands for one of them; tokenizer: None if marks are all texts."""
    return _Writer(tokenizer, schema, regex).write(form)


class _Writer:
    def __init__(
        self, tokenizer: LLTokenizer | None, schema: Callable[[Any], str], regex: Callable[[str], str]
    ) -> None:
        self._tokenizer = tokenizer
        self._schema = schema
        self._regex = regex
        self._rules: list[str] = []
        self._texts: dict[str, str] = {}
        self._numbered: dict[int, str] = {}

    def write(self, form: Form) -> str:
        start = self._node(form)
        texts = [f"{name}: {expression}" for expression, name in self._texts.items()]
        return "\n".join([f"start: {start}", *texts, *self._rules])

    def _node(self, node: Any) -> str:
        """An expression that stands for a form; empty for nothing at all."""
        match node:
            case str():
                return json.dumps(node) if node else ""
            case list():
                return " ".join(filter(None, map(self._node, node)))
            case {"marks": text}:
                return " ".join(self._marks(text))
            case {"until": mark}:
                return self._until(self._text(node), mark)
            case {"text": True}:
                return self._text(node)
            case {"any": options}:
                return self._rule(" | ".join(self._rule(self._node(option)) for option in options))
            case {"repeat": part}:
                item = self._rule(self._node(part))
                several = f"{item} ({self._node(node.get('between', ''))} {item})*"
                return several if node.get("least", 1) else f"({several})?"
            case {"schema": schema}:
                return self._rule(self._schema(schema))
            case {"regex": text}:
                return self._rule(self._regex(text))
            case {"part": number, "is": part}:
                self._numbered[number] = self._rule(self._node(part))
                return self._numbered[number]
            case {"part": number}:
                return self._numbered[number]
        raise ValueError(f"no form: {str(node)[:100]}")

    def _rule(self, expression: str, options: str = "") -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {expression or _NOTHING}")
        return name

    def _text(self, bounds: Mapping[Any, Any]) -> str:
        """The name of text within these bounds."""
        expression = _ANY
        if without := bounds.get("without"):
            expression += f" & ~/(?s:.*)({'|'.join(map(_literal, without))})(?s:.*)/"
        if first := bounds.get("first"):
            expression += f" & ~/\\s*[{_literal(first)}](?s:.*)/"
        return self._texts.setdefault(expression, f"T{len(self._texts)}")

    def _until(self, text: str, mark: str) -> str:
        # Written in letters it is the mark as well, to whoever reads the text.
        ends = [self._rule(f"{text} {json.dumps(mark)}", "[lazy]")]
        parts = self._marks(mark)
        if parts != [json.dumps(mark)]:
            ends.append(f"{text} {' '.join(parts)}")
        return self._rule(" | ".join(ends))

    def _marks(self, text: str) -> list[str]:
        """Tokens where it has such, and the text between. An end of outputs is left out: it ends them."""
        made: list[str] = []
        at = 0
        for found in _MARK.finditer(text):
            token = self._special(found[0])
            if token is not None:
                if text[at : found.start()]:
                    made.append(json.dumps(text[at : found.start()]))
                if self._tokenizer is not None and token not in self._tokenizer.eos_tokens:
                    made.append(f"<[{token}]>")
                at = found.end()
        if text[at:]:
            made.append(json.dumps(text[at:]))
        return made

    def _special(self, text: str) -> int | None:
        """The special token that is this text."""
        if self._tokenizer is None:
            return None
        ids = self._tokenizer.tokenize_str(text, parse_special=True)
        return ids[0] if len(ids) == 1 and self._tokenizer.is_special_token(ids[0]) else None


_NOTHING = '""'


def _literal(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
