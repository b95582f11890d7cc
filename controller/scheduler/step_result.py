"""What a step's results do to its sequences: who goes on, who ends, and whose tokens are delivered."""

from __future__ import annotations

from typing import NamedTuple

from controller.scheduler.actions import Emit
from controller.scheduler.sequence import Sequence, State
from tidepipe_common.types.plan import SampledTokens
from tidepipe_common.types.sampling import PositionLogprobs


class StepResult(NamedTuple):
    """emit: the tokens to deliver, None if there are none.

    stopped: sequences that a token of theirs ends. due: sequences that it is time to look at.
    """

    emit: Emit | None
    stopped: list[tuple[Sequence, int]]
    due: list[Sequence]


def apply_samples(rows: tuple[Sequence, ...], sampled: SampledTokens) -> StepResult:
    """Append to each sequence of a step what was sampled for it."""
    marked: list[tuple[Sequence, int]] = []
    # Once per sequence and step, and so the most expensive loop of the controller.
    for sequence, token in zip(rows, sampled.token_ids, strict=True):
        length = sequence.length + 1
        if length >= sequence.next_check_length or token in sequence.end_tokens:
            marked.append((sequence, token))
        else:
            sequence.length = length
            sequence.output.append(token)
    due, stopped = [], []
    dropped: set[Sequence] = set()
    for sequence, token in marked:
        if sequence.state is State.ENDED:  # cancelled while its token was in flight
            dropped.add(sequence)
        elif token in sequence.end_tokens:
            dropped.add(sequence)
            stopped.append((sequence, token))
        else:
            sequence.output.append(token)
            sequence.length += 1
            due.append(sequence)
    return StepResult(_emit(rows, sampled, dropped), stopped, due)


def _emit(rows: tuple[Sequence, ...], sampled: SampledTokens, dropped: set[Sequence]) -> Emit | None:
    """The tokens of all rows but the dropped ones."""
    token_ids, logprobs = sampled.token_ids, sampled.logprobs
    if dropped:
        kept = [index for index, sequence in enumerate(rows) if sequence not in dropped]
        rows = tuple([rows[index] for index in kept])
        token_ids = tuple([token_ids[index] for index in kept])
        logprobs = tuple([logprobs[index] for index in kept]) if logprobs else ()
    if not rows:
        return None
    wanted: list[PositionLogprobs | None] = [
        None if sequence.sampling.logprobs is None else own
        for sequence, own in zip(rows, logprobs, strict=False)
    ]
    ids = tuple([sequence.sequence_id for sequence in rows])
    return Emit(ids, token_ids, tuple(wanted))
