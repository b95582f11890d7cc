"""Calls that models are made to write: whatever tokens are drawn of those allowed, the family's reader reads
calls of these functions with valid arguments, and of no others.

FORCED_WALKS draws more.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.fakes.byte_tokenizer import END, byte_tokenizer
from tidepipe_common.dialects import CallArguments, CallBegins, CallEnds, Dialect, Part, dialect_named, names
from tidepipe_common.dialects.calling import (
    Function,
    Thinking,
    allowed,
    required,
)
from tidepipe_common.structures.forms import written
from tidepipe_common.structures.grammar import make_matcher, make_tokenizer
from tidepipe_common.types.structure import Form, Structure

FAMILIES = [name for name in names() if name not in ("auto", "off")]
WALKS, MOST_TOKENS = int(os.environ.get("FORCED_WALKS", "2")), 300
FUNCTIONS = (
    Function(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"enum": ["C", "F"]},
                "days": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    ),
    Function("größe-2", {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"n": {"type": "integer"}}}}}),
)
TOOLS = [
    json.dumps({"type": "function", "function": {"name": one.name, "parameters": one.parameters}})
    for one in FUNCTIONS
]
MARK = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")


class Model:
    """A family's dialect, and a tokenizer in which its marks are tokens, or are not."""

    def __init__(self, family: str, tokens: bool) -> None:
        plain = dialect_named(family)
        form, thoughts = plain.form, plain.thoughts
        assert form is not None
        texts = [form.before, form.begin, form.middle, form.end, form.between, form.after]
        texts += [] if thoughts is None else [*thoughts.begins, *thoughts.ends]
        texts += [] if plain.grammar is None else plain.grammar.opens
        texts += ["<|start|>", "<|end|>", "<|channel|>", "<|message|>"] if plain.harmony else []
        self.marks = sorted({mark for text in texts for mark in MARK.findall(text)})
        made = byte_tokenizer()
        if tokens:
            made.add_special_tokens(self.marks)
        self.dialect: Dialect = dialect_named(family, "", self.marks if tokens else ())
        self.size = made.get_vocab_size()
        self.end = made.token_to_id(END)
        self.liked = {made.token_to_id(mark) for mark in self.marks} if tokens else set()
        self.liked |= {made.token_to_id(letter) for letter in '"}],:1'}
        letters = [text for text in ('{"name": "get_weather', "\n{", *texts) if text]
        self.spelled = [[token for letter in text for token in made.encode(letter).ids] for text in letters]
        self.tokenizer = make_tokenizer(made.to_str(), self.size, [self.end])

    def outputs(self, form: Form) -> list[str]:
        """Some that conform, and have ended by themselves."""
        structure = Structure("composed", f'{{"form":{written(form)}}}', "tools")
        return [text for seed in range(WALKS) if (text := self._walk(structure, random.Random(seed)))]

    def _walk(self, structure: Structure, choice: random.Random) -> str:
        matcher = make_matcher(self.tokenizer, structure)
        output: list[int] = []
        spelling: list[int] = []
        for _ in range(MOST_TOKENS):
            mask = matcher.compute_bitmask()
            assert not matcher.is_error(), matcher.get_error()
            may = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: self.size])
            allowed_ids = set(may.tolist())
            if matcher.is_accepting() and (choice.random() < 0.4 or allowed_ids <= {self.end}):
                return self.tokenizer.decode_str(output)
            allowed_ids.discard(self.end)
            liked = sorted(allowed_ids & self.liked)
            if not spelling and choice.random() < 0.3:
                spelling = list(choice.choice(self.spelled))
            if spelling and spelling[0] not in allowed_ids:
                spelling = []
            if spelling:
                token = spelling.pop(0)
            elif liked and choice.random() < 0.4:
                token = choice.choice(liked)
            else:
                token = choice.choice(sorted(allowed_ids))
            matcher.consume_token(token)
            output.append(token)
        return ""


def read(dialect: Dialect, text: str, thinking: bool) -> tuple[list[Part], str]:
    reader = dialect.reader(TOOLS, thinking=thinking)
    return [*reader.feed(text), *reader.end()], reader.warning


def calls(parts: Sequence[Part]) -> list[tuple[str, Any]]:
    """Those that are whole."""
    made: list[tuple[str, Any]] = []
    for part in parts:
        if isinstance(part, CallBegins):
            name, arguments = part.name, ""
        elif isinstance(part, CallArguments):
            arguments += part.text
        elif isinstance(part, CallEnds):
            made.append((name, json.loads(arguments)))
    return made


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_forced_is_read(family: str, tokens: bool) -> None:
    model = Model(family, tokens)
    schemas = {one.name: one.parameters for one in FUNCTIONS}
    ended = 0
    ways: tuple[Thinking, ...] = ("perhaps",) if model.dialect.thoughts is None else ("open", "perhaps")
    for thinking, parallel, must in itertools.product(ways, (True, False), (True, False)):
        make = required if must else allowed
        for text in model.outputs(make(model.dialect, FUNCTIONS, parallel, thinking)):
            parts, warning = read(model.dialect, text, thinking == "open")
            made = calls(parts)
            assert not warning, text
            assert len(made) >= must, text
            assert parallel or len(made) <= 1, text
            assert len(made) == sum(isinstance(part, CallBegins) for part in parts), text
            for name, arguments in made:
                jsonschema.validate(arguments, {"type": "object", **schemas[name]})
            ended += must
    assert ended
