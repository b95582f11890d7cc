"""Structured outputs in the sampler: always valid, and the same wherever a sequence begins again."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from stage_worker.sampling.sampler import Sampler
from tests.fakes.byte_tokenizer import byte_tokenizer
from tidepipe_common.structures import state as structure_state
from tidepipe_common.structures.grammar import make_matcher
from tidepipe_common.structures.state import Grammars
from tidepipe_common.types.plan import SequenceStart
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.structure import Structure

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "ok": {"type": "boolean"},
        "sizes": {"type": "array", "items": {"enum": [1, 22]}, "maxItems": 2},
    },
    "required": ["name", "ok", "sizes"],
    "additionalProperties": False,
}
PROMPT = (7, 8)
LIMIT = 200


TOKENIZER = byte_tokenizer()
END = TOKENIZER.token_to_id("<end>")
VOCAB_SIZE = END + 8  # padded, as many models' are
GRAMMARS = Grammars(TOKENIZER.to_str, VOCAB_SIZE)


def generate(params: SamplingParams, logits_seed: int, restart_at: int = -1) -> list[int]:
    """Output tokens up to the end token; at `restart_at` another worker goes on with the history."""
    output: list[int] = []
    sampler = Sampler(VOCAB_SIZE, torch.device("cpu"), GRAMMARS)
    for position in range(LIMIT):
        if position in (0, restart_at):
            sampler = Sampler(VOCAB_SIZE, torch.device("cpu"), GRAMMARS)
            sampler.start(SequenceStart(1, params, len(PROMPT), (*PROMPT, *output), (END,)))
        generator = torch.Generator().manual_seed(logits_seed + position)
        logits = torch.randn((1, VOCAB_SIZE), generator=generator) * 5
        sampled = sampler.sample(logits, [1], [len(PROMPT) + position])
        (token,) = sampled.token_ids
        assert not sampled.errors
        if token == END:
            return output
        output.append(token)
    raise AssertionError("the output did not end")


@settings(max_examples=25)
@given(st.integers(0, 2**20), st.booleans(), st.integers(0, 30))
def test_random_logits_give_valid_json_also_after_a_restart(seed: int, greedy: bool, restart_at: int) -> None:
    structure = Structure("json_schema", json.dumps(SCHEMA))
    params = SamplingParams(
        temperature=0.0 if greedy else 1.5, seed=seed, structure=structure, presence_penalty=0.5
    )
    output = generate(params, seed)
    value = json.loads(TOKENIZER.decode(output))
    assert value.keys() == {"name", "ok", "sizes"}
    assert len(value["name"]) <= 4 and len(value["sizes"]) <= 2
    assert generate(params, seed, restart_at) == output


def test_a_finished_structure_ends_in_spite_of_min_tokens() -> None:
    params = SamplingParams(temperature=0.0, structure=Structure("regex", "yes|no"), min_tokens=50)
    assert TOKENIZER.decode(generate(params, 3)) in ("yes", "no")


def test_rows_without_a_structure_are_not_touched() -> None:
    sampler = Sampler(VOCAB_SIZE, torch.device("cpu"), GRAMMARS)
    free = SamplingParams(temperature=0.0)
    held = SamplingParams(temperature=0.0, structure=Structure("regex", "a"))
    for key, params in enumerate((free, held)):
        sampler.start(SequenceStart(key, params, len(PROMPT), PROMPT, (END,)))
    logits = torch.zeros((2, VOCAB_SIZE))
    logits[:, 5] = 1.0
    first, second = sampler.sample(logits, [0, 1], [2, 2]).token_ids
    assert (first, TOKENIZER.decode([second])) == (5, "a")


def test_a_tokenizer_may_have_more_tokens_than_the_model() -> None:
    larger = byte_tokenizer()
    larger.add_special_tokens(["<one more>"])
    state = Grammars(larger.to_str, END + 1).state(Structure("regex", "a"), (END,), ())
    assert state.allowed().nonzero()[0].tolist() == [TOKENIZER.token_to_id("a")]


def test_ordinary_tokens_that_end_outputs_do_not_cut_structures() -> None:
    letters, brace = [TOKENIZER.token_to_id(letter) for letter in "abcdefgh"], TOKENIZER.token_to_id("}")
    structure = Structure("regex", "[a-z]{3}!")
    params = SamplingParams(temperature=0.0, structure=structure, stop_token_ids=tuple(letters))
    assert re.fullmatch("[i-z]{3}!", TOKENIZER.decode(generate(params, 5)))
    stuck = SamplingParams(temperature=0.0, structure=Structure("regex", "a}b"), stop_token_ids=(brace,))
    sampler = Sampler(VOCAB_SIZE, torch.device("cpu"), GRAMMARS)
    sampler.start(SequenceStart(1, stuck, len(PROMPT), PROMPT, (END,)))
    assert not sampler.sample(torch.zeros((1, VOCAB_SIZE)), [1], [2]).errors
    (error,) = sampler.sample(torch.zeros((1, VOCAB_SIZE)), [1], [3]).errors
    assert error.key == 1 and "structure" in error.detail and error.fault == "stop_token_ids"


def test_a_structure_that_becomes_too_complex_is_its_sequences_error() -> None:
    wide = {"properties": {f"p{number}": {"type": "integer"} for number in range(600)}, "type": "object"}
    params = SamplingParams(temperature=0.0, structure=Structure("json_schema", json.dumps(wide)))
    sampler = Sampler(VOCAB_SIZE, torch.device("cpu"), GRAMMARS)
    free = SamplingParams(temperature=0.0)
    for key, one in enumerate((params, free)):
        sampler.start(SequenceStart(key, one, len(PROMPT), PROMPT, (END,)))
    (error,) = sampler.sample(torch.zeros((2, VOCAB_SIZE)), [0, 1], [2, 2]).errors
    assert error.key == 0 and "too complex" in error.detail and error.fault == "response_format"


def test_the_answers_of_a_request_build_their_grammar_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And do not share their places in it."""
    built: list[Structure] = []

    def make(tokenizer: LLTokenizer, structure: Structure) -> LLMatcher:
        built.append(structure)
        return make_matcher(tokenizer, structure)

    monkeypatch.setattr(structure_state, "make_matcher", make)
    grammars = Grammars(TOKENIZER.to_str, VOCAB_SIZE)
    states = [grammars.state(Structure("regex", "ab"), (END,), ()) for _ in range(16)]
    states[0].append(TOKENIZER.token_to_id("a"))
    assert states[0].allowed().nonzero()[0].tolist() == [TOKENIZER.token_to_id("b")]
    assert states[1].allowed().nonzero()[0].tolist() == [TOKENIZER.token_to_id("a")]
    assert len(built) == 1
