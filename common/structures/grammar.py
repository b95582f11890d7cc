"""A structure's grammar, as the router tries it out and as the last stage keeps to it.

Nothing here bounds what *building* a grammar takes: the library does not. It is built first in a process
that may be killed (`common.structures.process`), and only what passes there is built elsewhere. What one mask
takes is bounded by the limits below.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from common.structure import Structure

MAX_BUILD_CPU_S = 0.5
"""Of a core, for the grammar and its first mask: a stage's step waits so long for it."""
MAX_MASK_CPU_S = 0.1
_WALKS, _TRIED_TOKENS = 4, 16
"""How far into an output a structure is tried out: most that are too complex show it at once."""

_LIMITS = LLParserLimits(max_lexer_states=25_000, step_lexer_fuel=200_000, verbose_errors=False)
"""Some 15 ms a mask, and 50 MB a sequence."""
_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Text of which there is only one is not put into tokens ahead: the library would do so for a million
characters at once, and with the tokenizer's reading of text, in which special tokens may stand."""
_ONE_WAY = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON is written in one way only: a small model that may put whitespace anywhere puts it everywhere."""
_OWN_OPTIONS = "x-guidance"
"""Of the library, within a schema; some make it overlook what it does not know."""


class StructureError(ValueError):
    """No output can be held to the structure, or no longer. The text says why, for people."""


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
        raise StructureError(f"not with this model's tokenizer: {_short(str(error))}") from None


def make_matcher(tokenizer: LLTokenizer, structure: Structure) -> LLMatcher:
    """A place at the beginning of an output. StructureError if the structure is not usable."""
    matcher = LLMatcher(tokenizer, grammar(structure), log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise StructureError(f"the {structure.title} is not usable: {_short(matcher.get_error())}")
    return matcher


def try_out(tokenizer: LLTokenizer, structure: Structure) -> None:
    """Build it and take a few steps in it. StructureError if that cannot be done, or takes too long."""
    begin = time.process_time()
    matcher = make_matcher(tokenizer, structure)
    mask = matcher.compute_bitmask()
    if time.process_time() - begin > MAX_BUILD_CPU_S:
        raise StructureError(f"the {structure.title} is too complex: make it smaller")
    for seed in range(_WALKS):
        _walk(matcher.deep_copy(), mask, structure, frozenset(tokenizer.eos_tokens), random.Random(seed))


def _walk(
    matcher: LLMatcher, mask: bytes, structure: Structure, ends: frozenset[int], choice: random.Random
) -> None:
    """The beginning of some output. StructureError if there is none, or a step takes too long."""
    for _ in range(_TRIED_TOKENS):
        if matcher.is_error():
            raise StructureError(f"the {structure.title} is not usable: {_short(matcher.get_error())}")
        token = _some_token(mask, ends, choice)
        if token is None:
            if matcher.is_accepting():
                return
            raise StructureError(f"the {structure.title} is not usable: no text of this model conforms to it")
        begin = time.process_time()
        matcher.consume_token(token)
        mask = matcher.compute_bitmask()
        if time.process_time() - begin > MAX_MASK_CPU_S:
            raise StructureError(f"the {structure.title} is too complex: make it smaller")


def _some_token(mask: bytes, ends: frozenset[int], choice: random.Random) -> int | None:
    """One that is allowed, ends apart."""
    for place in choice.sample(filled := [index for index, byte in enumerate(mask) if byte], len(filled)):
        tokens = [8 * place + bit for bit in range(8) if mask[place] >> bit & 1]
        if tokens := [token for token in tokens if token not in ends]:
            return choice.choice(tokens)
    return None


def grammar(structure: Structure) -> str:
    """The structure as the library takes it. StructureError if its text is no JSON schema."""
    if structure.kind == "regex":
        made = json.loads(LLMatcher.grammar_from_regex(structure.text))
        return f"{_OPTIONS}{made['grammars'][0]['lark_grammar']}"
    try:
        schema = json.loads(structure.text)
    except ValueError as error:
        raise StructureError(f"the JSON schema is not usable: {_short(str(error))}") from None
    except RecursionError:
        raise StructureError("the JSON schema is not usable: nested too deeply") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise StructureError("the JSON schema is not usable: it must be an object")
    return f"{_OPTIONS}start: %json {json.dumps({**schema, _OWN_OPTIONS: _ONE_WAY})}"


def _short(problem: str) -> str:
    """Without the grammar that the library quotes, which the client has not written."""
    problem = problem.partition("1 | %llguidance")[0].replace("<non-verbose/>", "")
    return " ".join(problem.split())[:300]
