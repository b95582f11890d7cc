"""Random structures, random tokens of those that they allow: what ends conforms, or there was an error.

jsonschema and Python's `re` are the judges. STRUCTURE_EXAMPLES draws more (and --timeout=0).
"""

from __future__ import annotations

import json
import os
import random
import re
import warnings
from decimal import Context, Decimal, localcontext
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from tests.fakes.byte_tokenizer import END, byte_tokenizer
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.openai.structures import choice_of
from tidepipe_common.structures.errors import StructureError
from tidepipe_common.structures.grammar import make_matcher, make_tokenizer, try_out
from tidepipe_common.types.structure import Structure

EXAMPLES = int(os.environ.get("STRUCTURE_EXAMPLES", "150"))
WALKS, MOST_TOKENS = 4, 100

BYTES = byte_tokenizer()
VOCAB_SIZE = BYTES.get_vocab_size()
END_ID = BYTES.token_to_id(END)
TOKENIZER = make_tokenizer(BYTES.to_str(), VOCAB_SIZE, [END_ID])
LIKED = {BYTES.token_to_id(letter) for letter in '"\\}],:ua0192-/'}
"""Taken more often: what closes, and what is written in more than one way."""
LIBRARY = re.compile(r"guidance|Some\(|NoExt|verbose|json-schema:|lark|f64|u64|sys\.|Regex|\x1b")
"""Words that are not for clients."""

NAMES = ["a", "b", "/c", "\u00e9", "x\n", 'a"b', "\u2028", "n1", "", "\x00", "$ref", "\U0001f600"]
PATTERNS = [
    *(
        "^a",
        "b$",
        "a.b",
        "^[a-z]+$",
        r"^\d{3}$",
        r"\w+",
        r"^\W$",
        r"^\S\D$",
        "[^a]",
        "^(a|b)*$",
        "^$",
        "^.$",
        "$",
    ),
    *("a|^b$", r"^[\x00-\x1f]$", r"^[^\d\s]$", r"^[\D\S]$", r"^\s$", '^["\\\\]+$', "^/+$", "(?i)^ab$", "a$b"),
    *(
        '[^"]',
        r'^[^"\\]+$',
        "^[\\x00-!]$",
        r"^\p{Cc}$",
        r"^\P{Po}$",
        r"^[\P{Po}a]+$",
        r"^[^\P{Po}]$",
        r"a|[^a\\]",
        r"^\0$",
    ),
    *("[[:alpha:]]", "[a&&b]", "[a--b]", "a++", r"\bfoo", "(?=a)", r"(a)\1", "[]a]", "(", r"[\d-x]", "é"),
]
FORMATS = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "regex",
]
NUMBERS = [0.1, 1.5, -2.5, 1e-3, 2**53, 2**53 + 1, -(2**60), 1e20, 1e-10, 99991, -0.0, 1.0, 10**30]

numbers = st.integers(-30, 30) | st.sampled_from(NUMBERS)
names = st.sampled_from(NAMES)
texts = st.text(st.sampled_from('ab/\\"\n\u00e9\U0001f600\u2028\x00\x7f 1'), max_size=3)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
small = st.integers(0, 4)
KEYWORDS_OF = {
    "string": ("minLength", "maxLength", "pattern", "format", "enum", "const"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("minProperties", "maxProperties", "propertyNames", "dependentRequired"),
    ),
}


def _parts(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas that have `parts` within."""
    some = st.lists(parts, min_size=1, max_size=2)
    of: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), numbers),
        **dict.fromkeys(
            ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), small
        ),
        **dict.fromkeys(("items", "contains", "propertyNames", "not", "if", "then"), parts),
        **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), some),
        "additionalProperties": parts,
        "multipleOf": numbers.map(abs).filter(bool),
        "pattern": st.sampled_from(PATTERNS),
        "format": st.sampled_from(FORMATS),
        "enum": st.lists(values, min_size=1, max_size=3),
        "const": values,
        "uniqueItems": st.booleans(),
        "properties": st.dictionaries(names, parts, max_size=3),
        "required": st.lists(names, max_size=2, unique=True),
        "patternProperties": st.dictionaries(st.sampled_from(PATTERNS), parts, max_size=2),
        "dependentRequired": st.just({"a": ["b"]}),
        "$ref": st.sampled_from(["#", "#/$defs/r", "#/properties/a"]),
        "x-guidance": st.just({"lenient": True}),
        "default": values,
    }

    def with_keywords(keywords: list[str], fixed: dict[str, Any]) -> st.SearchStrategy[Any]:
        return st.fixed_dictionaries({name: of[name] for name in keywords}).map(
            lambda made: {**fixed, **made}
        )

    typed = st.sampled_from(sorted(KEYWORDS_OF)).flatmap(
        lambda kind: st.lists(st.sampled_from(KEYWORDS_OF[kind]), max_size=3, unique=True).flatmap(
            lambda keywords: with_keywords(keywords, {"type": kind})
        )
    )
    joined = st.sampled_from(["allOf", "anyOf", "oneOf", "$ref", "enum", "const"]).flatmap(
        lambda keyword: with_keywords([keyword], {})
    )
    both = st.builds(lambda one, other: {**one, **other}, typed, joined)
    odd = st.lists(st.sampled_from(sorted(of)), min_size=1, max_size=3, unique=True).flatmap(
        lambda keywords: with_keywords(keywords, {})
    )
    return st.one_of(typed, typed, typed, joined, both, odd)


schemas = st.recursive(st.just({}) | st.booleans(), _parts, max_leaves=5)
whole_schemas = st.builds(
    lambda schema, other: {**schema, "$defs": {"r": other}} if "$ref" in json.dumps(schema) else schema,
    schemas.filter(lambda schema: isinstance(schema, dict)),
    schemas,
)
expressions = st.recursive(
    st.sampled_from(PATTERNS) | st.sampled_from(list("ab01 -\n\u00e9\u0663<&~#")).map(re.escape),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join),
        inner.map(lambda one: f"(?:{one})*"),
        inner.map(lambda one: f"({one}){{1,2}}"),
    ),
    max_leaves=4,
)


def answers(structure: Structure, seed: int) -> list[str]:
    """What ends of some outputs of random tokens; none if the structure is refused, in words for people."""
    try:
        structure.check()
        try_out(TOKENIZER, structure)
        matcher = make_matcher(TOKENIZER, structure)
    except StructureError as error:
        assert not LIBRARY.search(str(error)), error
        return []
    except InvalidRequestError:
        return []
    walks = (_walk(matcher.deep_copy(), random.Random(seed + number)) for number in range(WALKS))
    return [walk for walk in walks if walk is not None]


def _walk(matcher: LLMatcher, chance: random.Random) -> str | None:
    output: list[int] = []
    while len(output) < MOST_TOKENS:
        packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            return None
        allowed = np.flatnonzero(np.unpackbits(packed, bitorder="little")[:VOCAB_SIZE]).tolist()
        goes_on = [token for token in allowed if token != END_ID]
        if matcher.is_accepting() and (not goes_on or chance.random() < 0.4):
            return BYTES.decode(output, skip_special_tokens=False)
        liked = [token for token in goes_on if token in LIKED]
        output.append(chance.choice(liked if liked and chance.random() < 0.6 else goes_on))
        matcher.consume_token(output[-1])
    return None


def conforms(schema: dict[str, Any], text: str) -> bool:
    """By numbers as they stand there, and as floats (but for multiples, which floats are not)."""
    written = json.dumps(schema)
    with localcontext(Context(prec=400)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return all(
            _valid(written, text, number)
            for number in ((Decimal,) if "multipleOf" in written else (Decimal, float))
        )


def _valid(schema: str, text: str, number: type[Decimal] | type[float]) -> bool:
    formats = jsonschema.Draft202012Validator.FORMAT_CHECKER
    try:
        judge = jsonschema.Draft202012Validator(
            json.loads(schema, parse_float=number), format_checker=formats
        )
        return bool(judge.is_valid(json.loads(text, parse_float=number)))
    except (re.error, ArithmeticError):  # no pattern, or number, of the judge's
        return True


GREAT = 2**53 + 1
OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(whole_schemas, st.integers(0, 2**20))
@example({"const": [GREAT, 1.0]}, 1)
@example({"type": "integer", "minimum": GREAT - 1, "maximum": GREAT + 1}, 1)
@example(
    {"type": "object", "minProperties": 3, "patternProperties": {"^a?$": {}}, "additionalProperties": False},
    1,
)
@example({"type": "number", "minimum": 0, "maximum": 0.1, "exclusiveMinimum": 0}, 0)
@example({"type": "integer", "maximum": 0, "minimum": -1, "allOf": [{"exclusiveMaximum": 0}]}, 0)
@example({"type": "number", "exclusiveMinimum": 1, "maximum": 2}, 0)
@example({"type": "string", "pattern": "[[:alpha:]]"}, 1)
@example({"type": "string", "format": "date"}, 1)
@example({"type": "object", "patternProperties": {r"^\w$": {"type": "null"}}, "minProperties": 1}, 1)
def test_json_conforms_or_is_an_error(schema: dict[str, Any], seed: int) -> None:
    for answer in answers(Structure("json_schema", json.dumps(schema)), seed):
        assert conforms(schema, answer), answer


@settings(max_examples=EXAMPLES, deadline=None)
@given(expressions, st.integers(0, 2**20))
def test_expressions_are_fully_matched_or_an_error(expression: str, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            judge = re.compile(expression)
        except re.error:
            judge = re.compile("(?s:.*)")  # in words that Python does not have
    for answer in answers(Structure("regex", expression), seed):
        assert judge.fullmatch(answer), answer


@settings(max_examples=EXAMPLES // 5, deadline=None)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=4), st.integers(0, 2**20))
@example(["<end>", "a\nb\\", ""], 1)
def test_choices_are_made(choices: list[str], seed: int) -> None:
    made = answers(choice_of(choices), seed)
    assert made and set(made) <= set(choices)


def accepted(schema: dict[str, Any], text: str) -> bool:
    """True if an output may be this text."""
    matcher = make_matcher(TOKENIZER, Structure("json_schema", json.dumps(schema)))
    ids = BYTES.encode(text).ids
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        (OPEN, '{"a": 1}', True),
        (OPEN, '{"\\u0061": "x"}', False),  # the name a, whose value is no integer
        (OPEN, '{"a": 1, "\\u0061": "x"}', False),
        ({"const": "\x00\n"}, '"\\u0000\\n"', True),
        ({"type": "string", "format": "date"}, '"2024-02-29"', True),
        ({"type": "string", "format": "date"}, '"2023-02-29"', False),
        ({"type": "string", "format": "date-time"}, '"1900-02-29T00:00:00Z"', False),
        ({"type": "string", "format": "date"}, '"0000-01-01"', False),
        ({"type": "string", "format": "hostname"}, f'"{"a" * 64}"', False),
        ({"type": "string", "pattern": r"^\d$"}, '"\u0663"', False),
        ({"type": "string", "pattern": r"^\D$"}, '"\u0663"', False),
        ({"type": "string", "pattern": r"^[^\D]$"}, '"5"', True),
        ({"type": "string", "pattern": '^[^"]$'}, r'"\""', False),
        ({"type": "string", "pattern": '^[^"]$'}, r'"\\"', True),
        ({"type": "string", "pattern": "^[^-a]$"}, '"B"', True),
        ({"type": "string", "pattern": r"^\p{Cc}$"}, r'"\\"', False),
        (
            {"type": "object", "patternProperties": {'^[^"]+$': {}}, "additionalProperties": False},
            r'{"\"": 1}',
            False,
        ),
        ({"type": "string", "pattern": "^.$"}, '"\u2028"', False),
        ({"type": "number", "exclusiveMinimum": 1}, f"1.{'0' * 30}1", False),
        ({"type": "number", "exclusiveMinimum": 1}, "1.001", True),
        ({"type": "string", "maxLength": 1}, '"\U0001f600"', True),
    ],
)
def test_one_name_is_written_in_one_way(schema: dict[str, Any], text: str, allowed: bool) -> None:
    assert accepted(schema, text) == allowed
