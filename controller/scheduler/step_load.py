"""The load of an instance, as the budget of its steps is chosen by (`step_budget.py`)."""

from __future__ import annotations

import math
from itertools import chain, islice
from typing import NamedTuple

from controller.scheduler.decode import MicroBatch
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.slack import Decoding, decoding_of, tokens_ahead
from controller.scheduler.state import PipelineState
from controller.scheduler.step_budget import (
    MOST_PROMPTS,
    StepLoad,
    Turnover,
    WaitingPrompt,
    coming_of,
    turnover_of,
)


class RunningLook(NamedTuple):
    """What the sequences that decode are. Taking one costs a microsecond a sequence: once a round is enough.

    context: KV tokens of all. decoding: those with a target who had their first token in time.
    """

    context: int
    decoding: list[Decoding]
    turnover: list[Turnover]


def has_targets(state: PipelineState) -> bool:
    """Does anybody who runs wait for a single answer here?"""
    return any(sequence.tpot_s is not None for sequence in state.running.values())


def look_at_running(state: PipelineState) -> RunningLook:
    """As it is now."""
    decoding, turnover = [], []
    context = 0
    leaving = set(state.batches.leaving)
    for sequence in state.running.values():
        # Who waits for its way out has no part in the steps that are chosen.
        if sequence.state is not State.DECODE or sequence in leaving:
            continue
        context += sequence.length
        produced = len(sequence.output)
        ahead = tokens_ahead(sequence.predicted_p50, produced, sequence.max_tokens)
        turnover.append(Turnover(len(sequence.prompt), produced + ahead, _due(sequence) - sequence.arrived))
        one = decoding_of(sequence)
        if one is not None and one.first_at <= _due(sequence):
            decoding.append(one)
    return RunningLook(context, decoding, turnover)


def load_of(state: PipelineState, batch: MicroBatch, running: RunningLook) -> StepLoad:
    """Before the next step of a batch. running: a look that is a round old at most."""
    prompts = list(islice(chain(state.prefilling, state.waiting), MOST_PROMPTS))
    rows = len(batch.members)
    return StepLoad(
        rows,
        len(state.batches.batches),
        running.context,
        running.decoding,
        [WaitingPrompt(one.to_compute, math.inf if one.output else _due(one)) for one in prompts],
        coming_of(state.prompt_pace, running.turnover),
        turnover_of(running.turnover, state.allocator.capacity_tokens),
        state.allocator.free * state.allocator.block_size,
        state.dispatch.seconds,
    )


def _due(sequence: Sequence) -> float:
    return math.inf if sequence.first_token_due is None else sequence.first_token_due
