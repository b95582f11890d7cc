"""A structure's grammar, as the router tries it out and as the last stage keeps to it.

Nothing here bounds what *building* a grammar takes: the library does not. It is built first in a process
that may be killed (`tidepipe_common.structures.process`), and only what passes there is built elsewhere.
What one mask takes is bounded by the limits below.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import structlog
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from tidepipe_common.structures.errors import TOO_COMPLEX, StructureError, in_our_words
from tidepipe_common.structures.expressions import portable
from tidepipe_common.structures.forms import lark, schemas_in
from tidepipe_common.structures.schemas import prepared
from tidepipe_common.text.text import quoted
from tidepipe_common.types.structure import Structure

log = structlog.get_logger()

MAX_BUILD_CPU_S = 0.5
"""Of a core, for the grammar and its first mask: a stage's step waits so long for it."""
MAX_MASK_CPU_S = 0.1
_WALKS, _TRIED_TOKENS = 4, 16
"""How far into an output a structure is tried out: most that are too complex show it at once."""
_WALKS_IN_ALL = 32
"""Of a form's schemas together."""

_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    max_grammar_size=500_000,
    max_items_in_row=2_000,
    max_lexer_states=25_000,
    precompute_large_lexemes=True,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    verbose_errors=False,
)
"""Of a trial and of the last stage alike; counted and not timed, so that an output that exceeds them does so
at the same token wherever it is computed. Some 15 ms a mask, and 50 MB a sequence."""
_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Text of which there is only one is not put into tokens ahead: the library would do so for a million
characters at once, and with the tokenizer's reading of text, in which special tokens may stand."""
_ONE_WAY = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON is written in one way only: a small model that may put whitespace anywhere puts it everywhere."""
_OWN_OPTIONS = "x-guidance"
"""Of the library, within a schema; some make it overlook what it does not know."""


def make_tokenizer(tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """The tokenizer in the library's form. StructureError if it, or the model, cannot be used for structures.

    vocab_size: of the model, which may be padded; the tokenizer may know more, which are never allowed.
    """
    if not eos_token_ids:
        raise StructureError("the model names no end-of-sequence token, by which a structured output ends")
    try:
        try:
            return LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        except ValueError:
            tokenizer = LLTokenizer(tokenizer_json, eos_token=list(eos_token_ids))
            if tokenizer.vocab_size <= vocab_size:
                raise
            return tokenizer
    except Exception as error:  # ValueError mostly; what else it raises says the same
        log.warning(
            "structured outputs are not possible: the tokenizer cannot be used", reason=str(error)[:400]
        )
        raise StructureError("not with this model: its tokenizer cannot be used for structures") from None


def make_matcher(tokenizer: LLTokenizer, structure: Structure) -> LLMatcher:
    """A place at the beginning of an output. StructureError if the structure is not usable."""
    matcher = LLMatcher(tokenizer, grammar(structure, tokenizer), log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise _unusable(structure, in_our_words(matcher.get_error()))
    return matcher


def try_out(tokenizer: LLTokenizer, structure: Structure) -> None:
    """Build it and take a few steps in it. StructureError if that cannot be done, or takes too long."""
    if structure.kind == "composed":
        _try_schemas(tokenizer, structure)
    _try_whole(tokenizer, structure, _WALKS)


def _try_schemas(tokenizer: LLTokenizer, structure: Structure) -> None:
    """Each by itself: so it is known whose is at fault, and none is left out because it comes late."""
    schemas = list(schemas_in(_decoded(structure.text)["form"]))
    walks = max(1, min(_WALKS, _WALKS_IN_ALL // max(1, len(schemas))))
    for of, schema in schemas:
        alone = Structure("json_schema", json.dumps(schema), structure.field)
        try:
            _try_whole(tokenizer, alone, walks)
        except StructureError as error:
            if not of:
                raise
            raise StructureError(
                _whose(of, str(error).partition("not usable: ")[2]), structure.field
            ) from None


def _whose(function: str, why: str) -> str:
    return f"the parameters of {quoted(function)} are not usable: {why}"


def _try_whole(tokenizer: LLTokenizer, structure: Structure, walks: int) -> None:
    begin = time.process_time()
    matcher = make_matcher(tokenizer, structure)
    mask = matcher.compute_bitmask()
    if time.process_time() - begin > MAX_BUILD_CPU_S:
        raise _unusable(structure, TOO_COMPLEX)
    for seed in range(walks):
        _walk(matcher.deep_copy(), mask, structure, frozenset(tokenizer.eos_tokens), random.Random(seed))


def _walk(
    matcher: LLMatcher, mask: bytes, structure: Structure, ends: frozenset[int], choice: random.Random
) -> None:
    """The beginning of some output. StructureError if there is none, or a step takes too long."""
    for _ in range(_TRIED_TOKENS):
        if matcher.is_error():
            raise _unusable(structure, in_our_words(matcher.get_error()))
        token = _some_token(mask, ends, choice)
        if token is None:
            if matcher.is_accepting():
                return
            raise _unusable(structure, "no text of this model conforms to it")
        begin = time.process_time()
        matcher.consume_token(token)
        mask = matcher.compute_bitmask()
        if time.process_time() - begin > MAX_MASK_CPU_S:
            raise _unusable(structure, TOO_COMPLEX)


def _some_token(mask: bytes, ends: frozenset[int], choice: random.Random) -> int | None:
    """One that is allowed, ends apart."""
    for place in choice.sample(filled := [index for index, byte in enumerate(mask) if byte], len(filled)):
        tokens = [8 * place + bit for bit in range(8) if mask[place] >> bit & 1]
        if tokens := [token for token in tokens if token not in ends]:
            return choice.choice(tokens)
    return None


def grammar(structure: Structure, tokenizer: LLTokenizer | None = None) -> str:
    """The structure as the library takes it. StructureError if it cannot be.

    tokenizer: tells which marks of a form are tokens.
    """
    try:
        match structure.kind:
            case "regex":
                return f"{_OPTIONS}{_expression(structure.text)}"
            case "json_schema":
                return f"{_OPTIONS}start: {_json(_decoded(structure.text))}"
        form = _decoded(structure.text)["form"]
        return f"{_OPTIONS}{lark(form, tokenizer, _json, _inline_expression)}"
    except StructureError as error:
        raise _unusable(structure, str(error)) from None
    except RecursionError:
        raise _unusable(structure, "nested too deeply") from None


def _expression(text: str) -> str:
    made = json.loads(LLMatcher.grammar_from_regex(portable(text)))
    return str(made["grammars"][0]["lark_grammar"])


def _inline_expression(text: str) -> str:
    """As part of a rule."""
    return _expression(text).removeprefix("start: ").strip()


def _json(schema: dict[str, Any]) -> str:
    made, escapes = prepared(schema)
    options = {**_ONE_WAY, "json_allowed_escapes": escapes}
    return f"%json {json.dumps({**made, _OWN_OPTIONS: options})}"


def _decoded(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise StructureError(f"it is no JSON: {error}") from None
    except ValueError:  # Python's, with advice to whoever runs it
        raise StructureError("a number in it has more digits than are supported") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise StructureError("it must be an object")
    return schema


def _unusable(structure: Structure, why: str) -> StructureError:
    return StructureError(f"the {structure.title} is not usable: {why}", structure.field)
