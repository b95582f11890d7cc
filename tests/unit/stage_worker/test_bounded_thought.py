"""Thoughts of bounded length: ended as the model ends them, wherever the sequence begins anew."""

from __future__ import annotations

import random

import pytest
import torch

from stage_worker.sampling.sampler import Sampler
from tidepipe_common.types.plan import SequenceStart
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.thought import ThoughtMarks

VOCAB = 12
BEGIN, END, CHANNEL, EOS = 7, 8, 9, 11
ONE = ThoughtMarks((BEGIN,), (END,), (END,))
SEVERAL = ThoughtMarks((CHANNEL, BEGIN), (END,), (END, CHANNEL))
PROMPT = (1, 2)


def start(marks: ThoughtMarks, most: int, output: tuple[int, ...]) -> SequenceStart:
    sampling = SamplingParams(temperature=0.0, max_reasoning_tokens=most, thought=marks)
    return SequenceStart(
        key=1,
        sampling=sampling,
        prompt_tokens=len(PROMPT),
        eos_token_ids=(EOS,),
        history=(*PROMPT, *output),
    )


def answer(marks: ThoughtMarks, most: int, wanted: list[int], cuts: set[int]) -> list[int]:
    """What is said where the model likes `wanted` best, token by token; at `cuts` another worker goes on."""
    sampler = Sampler(VOCAB, torch.device("cpu"))
    sampler.start(start(marks, most, ()))
    output: list[int] = []
    for index, token in enumerate(wanted):
        if index in cuts:
            sampler = Sampler(VOCAB, torch.device("cpu"))
            sampler.start(start(marks, most, tuple(output)))
        logits = torch.arange(VOCAB, dtype=torch.float32)[None] * -0.01
        logits[0, token] = 5.0
        output += sampler.sample(logits, [1], [len(PROMPT) + index]).token_ids
    return output


@pytest.mark.parametrize(
    ("marks", "most", "wanted", "said"),
    [
        (ThoughtMarks((BEGIN,), (END,), (END,), open=True), 2, [3, 4, 5, 5], [3, 4, END, 5]),
        (ThoughtMarks((BEGIN,), (END,), (END,), open=True), 0, [3, 4], [END, 4]),
        (ThoughtMarks((BEGIN,), (END,), (END,), open=True), 5, [3, END, 4, 5], [3, END, 4, 5]),
        (ONE, 2, [BEGIN, 3, 4, 5, 5], [BEGIN, 3, 4, END, 5]),
        (ONE, 1, [3, 4, 5], [3, 4, 5]),
        (ONE, 1, [BEGIN, 3, 4, BEGIN, 5], [BEGIN, 3, END, 0, 5]),  # no second one
        (SEVERAL, 1, [CHANNEL, BEGIN, 3, 4, 4, BEGIN], [CHANNEL, BEGIN, 3, END, CHANNEL, 0]),
    ],
)
def test_a_thought_ends_where_it_must(
    marks: ThoughtMarks, most: int, wanted: list[int], said: list[int]
) -> None:
    assert answer(marks, most, wanted, set()) == said


def test_it_is_the_same_wherever_another_worker_goes_on() -> None:
    choice = random.Random(1)
    for _ in range(60):
        marks = choice.choice([ONE, SEVERAL])
        wanted = [choice.choice([3, 4, BEGIN, BEGIN, END, CHANNEL]) for _ in range(14)]
        cuts = {index for index in range(14) if choice.random() < 0.3}
        assert answer(marks, 3, wanted, cuts) == answer(marks, 3, wanted, set())
