"""The sampler against a plain float64 reference, and the laws that restarts and batching rely on."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_worker.executors.protocol import PlanError
from stage_worker.sampling.apart import NotNumbersError
from stage_worker.sampling.sampler import Sampler
from stage_worker.sampling.sequence import LogitEdits, SequenceState, TokenCounts
from stage_worker.sampling.uniforms import philox4x32, uniforms
from tidepipe_common.types.plan import SampledTokens, SequenceStart
from tidepipe_common.types.sampling import SamplingParams

CPU = torch.device("cpu")
VOCABULARIES = (3, 90, 1500, 9000)  # below and above the widths at which candidates are looked for


@st.composite
def params(draw: st.DrawFn, vocab_size: int) -> SamplingParams:
    token = st.integers(0, vocab_size - 1)
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 1e-9, 0.3, 1.0, 2.5, 50.0])),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 50, 70, 1200, 10**6])),
        top_p=draw(st.sampled_from([1.0, 1.0, 1e-9, 0.3, 0.9, 0.999])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.1, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.5, 1.7])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, -1.0, 2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, -0.5, 1.5])),
        seed=draw(st.integers(0, 2**64 - 1)),
        logit_bias=draw(st.dictionaries(token, st.sampled_from([-100.0, 3.5, 100.0]), max_size=3)),
        min_tokens=draw(st.sampled_from([0, 0, 5])),
        stop_token_ids=tuple(draw(st.lists(token, max_size=2))),
        logprobs=draw(st.sampled_from([None, None, 0, 3, 20])),
    )


@dataclasses.dataclass(frozen=True)
class Row:
    start: SequenceStart
    logits: torch.Tensor

    @property
    def next_position(self) -> int:
        return len(self.start.history)


@st.composite
def batches(draw: st.DrawFn) -> list[Row]:
    vocab_size = draw(st.sampled_from(VOCABULARIES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = []
    for key in range(draw(st.integers(1, 4))):
        history = draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=8))
        start = SequenceStart(
            key=key,
            sampling=draw(params(vocab_size)),
            prompt_tokens=draw(st.integers(1, len(history))),
            history=tuple(history),
            eos_token_ids=(0,),
        )
        # Rounded, so that many logits are equal, as they are in bfloat16.
        logits = np.round(rng.normal(0, draw(st.sampled_from([0.01, 3.0])), vocab_size) * 4) / 4
        rows.append(Row(start, torch.tensor(logits, dtype=torch.float32)))
    return rows


def run(rows: Sequence[Row], dtype: torch.dtype = torch.float32) -> SampledTokens:
    sampler = Sampler(len(rows[0].logits), CPU)
    for row in rows:
        sampler.start(row.start)
    logits = torch.stack([row.logits for row in rows]).to(dtype)
    before = logits.clone()
    result = sampler.sample(logits, [r.start.key for r in rows], [r.next_position for r in rows])
    assert torch.equal(logits, before), "the caller's logits were changed"
    return result


def reference_logits(row: Row) -> npt.NDArray[np.float64]:
    """Bias, penalties and mask, token by token."""
    sampling, history = row.start.sampling, row.start.history
    output = history[row.start.prompt_tokens :]
    logits = row.logits.double().numpy().copy()
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    for token in set(history):
        factor = sampling.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token in set(output):
        logits[token] -= sampling.presence_penalty + sampling.frequency_penalty * output.count(token)
    ends = {*row.start.eos_token_ids, *sampling.stop_token_ids}
    if len(output) < sampling.min_tokens and len(ends) < len(logits):
        logits[list(ends)] = -np.inf
    return logits


def reference_interval(
    logits: npt.NDArray[np.float64], sampling: SamplingParams, token: int
) -> tuple[float, float]:
    """The uniforms for which `token` is drawn; empty if it is not a candidate."""
    temperature = max(sampling.temperature, 1e-6)
    order = np.arange(len(logits))
    if sampling.top_p < 1.0 or 0 < sampling.top_k < len(logits):
        order = np.argsort(-logits, kind="stable")[: sampling.top_k or None]
    weights = np.exp((logits[order] - logits.max()) / temperature)
    kept = np.cumsum(weights) - weights < sampling.top_p * weights.sum()
    weights = np.where(kept & (weights >= sampling.min_p), weights, 0.0)
    ends = np.cumsum(weights) / weights.sum()
    place = np.flatnonzero(order == token)
    if not len(place) or weights[place[0]] == 0.0:
        return (2.0, 2.0)
    return (float(ends[place[0]] - weights[place[0]] / weights.sum()), float(ends[place[0]]))


@given(batches())
def test_draws_what_the_reference_draws(rows: list[Row]) -> None:
    sampled = run(rows)
    for row, token in zip(rows, sampled.token_ids, strict=True):
        sampling = row.start.sampling
        logits = reference_logits(row)
        if sampling.greedy:
            assert logits[token] >= logits.max() - 1e-4
            continue
        index = row.next_position - row.start.prompt_tokens
        uniform = float(uniforms([sampling.seed or 0], [index])[0])
        # float32 and float64 may differ on a threshold or an end of an interval, not further.
        slack = 1e-5
        intervals = [
            reference_interval(
                logits,
                dataclasses.replace(sampling, top_p=sampling.top_p * fp, min_p=sampling.min_p * fm),
                token,
            )
            for fp, fm in itertools.product((1.0, 1 - 1e-9, 1 + 1e-9), (1.0, 1 - slack))
            if sampling.top_p < 1.0 or fp == 1.0
        ]
        assert any(low - slack <= uniform <= high + slack for low, high in intervals)


@given(batches(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_row_does_not_see_its_batch(rows: list[Row], dtype: torch.dtype) -> None:
    together = run(rows, dtype)
    for place, row in enumerate(rows):
        alone = run([row], dtype)
        assert alone.token_ids[0] == together.token_ids[place]
        if row.start.sampling.logprobs is not None:
            assert alone.logprobs[0] == together.logprobs[place]


@given(st.data())
@settings(max_examples=30)
def test_a_restarted_sequence_goes_on_as_if_nothing_had_happened(data: st.DataObject) -> None:
    vocab_size, steps = 40, 6
    sampling = data.draw(params(vocab_size))
    restart_at = data.draw(st.integers(0, steps - 1))
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 2, (steps, 1, vocab_size)))
    prompt = (1, 2, 3)

    def generate(restart: int | None) -> tuple[int, ...]:
        sampler = Sampler(vocab_size, CPU)
        tokens: tuple[int, ...] = prompt
        for step in range(steps):
            if step in (0, restart):
                sampler.release(7)
                sampler.start(SequenceStart(7, sampling, len(prompt), tokens, eos_token_ids=(0,)))
            tokens += sampler.sample(logits[step], [7], [len(tokens)]).token_ids
        return tokens

    assert generate(restart_at) == generate(None)


def test_penalties_by_hand() -> None:
    sampling = SamplingParams(
        repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 1.0}, seed=0
    )
    start = SequenceStart(1, sampling, prompt_tokens=2, history=(0, 1, 1, 2, 2))
    logits = torch.tensor([[4.0, -4.0, 4.0, -1.0, 7.0]])
    state = SequenceState(start, 5)
    LogitEdits([state], [3], 5).apply(logits)
    # Token 0: prompt only. 1: prompt, once in the output. 2: twice in the output. 3: bias only. 4: untouched.
    assert logits.tolist() == [[2.0, -8.75, 1.0, 0.0, 7.0]]
    state.append(0)
    logits = torch.tensor([[4.0, 0.0, 0.0, 0.0, 0.0]])
    LogitEdits([state], [4], 5).apply(logits)
    assert logits[0, 0].item() == 1.25


def test_min_tokens_masks_ends_until_reached() -> None:
    sampler = Sampler(4, CPU)
    sampler.start(
        SequenceStart(
            1, SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(2,)), 3, eos_token_ids=(3,)
        )
    )
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert [sampler.sample(logits, [1], [3 + i]).token_ids[0] for i in range(3)] == [1, 1, 3]
    everything = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(0, 1, 2, 3))
    sampler.start(SequenceStart(1, everything, 3))
    assert sampler.sample(logits, [1], [3]).token_ids == (3,)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    sampler = Sampler(3, CPU)
    wanting = SamplingParams(temperature=0.5, top_k=1, logit_bias={0: 50.0}, seed=0, logprobs=2)
    sampler.start(SequenceStart(1, wanting, 1))
    sampler.start(SequenceStart(2, SamplingParams(temperature=0.0), 1))
    probabilities = torch.tensor([0.2, 0.5, 0.3])
    result = sampler.sample(probabilities.log().repeat(2, 1) + 5, [1, 2], [1, 1])
    assert result.token_ids == (0, 1)
    entry = result.logprobs[0]
    assert (entry.chosen.token_id, [t.token_id for t in entry.top]) == (0, [1, 2])
    measured = [entry.chosen.logprob, *(t.logprob for t in entry.top)]
    assert np.exp(measured) == pytest.approx([0.2, 0.5, 0.3], abs=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_refuses_logits_that_are_not_finite(bad: float, temperature: float) -> None:
    sampler = Sampler(3, CPU)
    for key in (1, 2):
        sampler.start(SequenceStart(key, SamplingParams(temperature=temperature, seed=0), 1))
    logits = torch.zeros(2, 3)
    logits[1, 2] = bad
    with pytest.raises(NotNumbersError) as caught:
        sampler.sample(logits, [1, 2], [1, 1])
    assert caught.value.keys == (2,)


def test_refuses_what_makes_no_sense() -> None:
    sampler = Sampler(3, CPU)
    with pytest.raises(ValueError, match="seed"):
        sampler.start(SequenceStart(1, SamplingParams(), 1))
    with pytest.raises(PlanError, match="not started"):
        sampler.sample(torch.zeros(1, 3), [1], [1])
    sampler.start(SequenceStart(1, SamplingParams(repetition_penalty=2.0, seed=0), 2, (1, 1)))
    with pytest.raises(PlanError, match="history ends at 2"):
        sampler.sample(torch.zeros(1, 3), [1], [3])


def test_philox_known_answer() -> None:
    # From the Random123 distribution (philox4x32-10, counter 0, key 0).
    zero = np.zeros(1, np.uint64)
    even, odd = philox4x32(zero, zero)
    assert [int(w) for w in (even[0, 0], odd[0, 0], even[1, 0], odd[1, 0])] == [
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    ]
    # Seeds and indices that differ anywhere give other numbers, evenly spread.
    many = uniforms([seed for seed in (0, 1, 2**32, 2**63) for _ in range(1000)], [*range(1000)] * 4)
    assert len(set(many.tolist())) == 4000
    assert abs(float(many.mean()) - 0.5) < 0.02


def test_token_counts_grow_with_long_outputs() -> None:
    """Hundreds of distinct tokens, counted like a dictionary does."""
    chance = np.random.default_rng(2)
    prompt, output = chance.integers(0, 900, 150).tolist(), chance.integers(0, 900, 600).tolist()
    counts = TokenCounts(prompt, output[:1])
    for token_id in output[1:]:
        counts.add(token_id)
    expected = dict.fromkeys(prompt, 0) | Counter(output)
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == expected
