"""What cannot be sampled ends alone: its neighbours get the tokens that they get without it."""

from __future__ import annotations

import pytest
import torch

from stage_worker.sampling.apart import ApartSampler
from stage_worker.sampling.sampler import Sampler
from tests.unit.stage_worker.test_sampler_structure import END, TOKENIZER, VOCAB_SIZE
from tidepipe_common.structures.state import Grammars
from tidepipe_common.types.plan import SampledTokens, SequenceStart
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.structure import Structure

CPU = torch.device("cpu")
DRAWN = SamplingParams(temperature=1.0, seed=5, repetition_penalty=1.2, logprobs=2)
STRUCTURED = SamplingParams(temperature=0.0, structure=Structure("regex", "[a-z]+"))


def unreadable() -> str:
    raise FileNotFoundError("no tokenizer.json")


def sampler_of(grammars: Grammars, structured_eos: tuple[int, ...]) -> ApartSampler:
    sampler = ApartSampler(Sampler(VOCAB_SIZE, CPU, grammars))
    for key, params, eos in ((1, DRAWN, (END,)), (2, STRUCTURED, structured_eos), (3, DRAWN, (END,))):
        sampler.start(SequenceStart(key, params, 2, (1, 2), eos))
    return sampler


@pytest.mark.parametrize(
    ("grammars", "eos"),
    [(Grammars(TOKENIZER.to_str, VOCAB_SIZE), ()), (Grammars(unreadable, VOCAB_SIZE), (END,))],
)
def test_a_structure_that_cannot_be_built_ends_its_sequence_alone(
    grammars: Grammars, eos: tuple[int, ...]
) -> None:
    """A model without end token, or without tokenizer.json; told once, with the step in which it begins."""
    alone = ApartSampler(Sampler(VOCAB_SIZE, CPU))
    sampler = sampler_of(grammars, eos)
    for key in (1, 3):
        alone.start(SequenceStart(key, DRAWN, 2, (1, 2), (END,)))
    assert [error.key for error in sampler.tell(SampledTokens(())).errors] == [2]
    for position in range(2, 6):
        logits = torch.randn((3, VOCAB_SIZE), generator=torch.Generator().manual_seed(position))
        got = sampler.tell(sampler.sample(logits, [1, 2, 3], [position] * 3))
        expected = alone.sample(logits[[0, 2]], [1, 3], [position] * 2)
        assert (got.token_ids[0], got.token_ids[2]) == expected.token_ids
        assert (got.logprobs[0], got.logprobs[2]) == expected.logprobs
        assert not got.errors


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_their_sequences_own(bad: float) -> None:
    """While other rows' are."""
    sampler = ApartSampler(Sampler(3, CPU))
    for key in (1, 2, 3):
        sampler.start(SequenceStart(key, SamplingParams(temperature=0.0), 1))
    logits = torch.zeros(3, 3)
    logits[1, 2] = bad
    got = sampler.tell(sampler.sample(logits, [1, 2, 3], [1, 1, 1]))
    assert [error.key for error in got.errors] == [2]
    assert "not numbers" in got.errors[0].detail
    again = sampler.sample(torch.zeros(3, 3), [1, 2, 3], [2, 2, 2])
    assert not sampler.tell(again).errors


def test_what_fails_in_all_rows_is_nobodys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's failure, not the requests'; unless their numbers are none, as with a broken adapter."""

    def of_two() -> ApartSampler:
        sampler = ApartSampler(Sampler(3, CPU))
        for key in (1, 2):
            sampler.start(SequenceStart(key, SamplingParams(temperature=0.0), 1))
        return sampler

    sampler = of_two()
    got = sampler.tell(sampler.sample(torch.full((2, 3), torch.nan), [1, 2], [1, 1]))
    assert [error.key for error in got.errors] == [1, 2]
    monkeypatch.setattr("stage_worker.sampling.sampler._argmax", lambda values: torch.zeros(-1))
    with pytest.raises(RuntimeError):
        of_two().sample(torch.zeros(2, 3), [1, 2], [1, 1])
