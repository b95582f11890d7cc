"""From what a router hands over to a sequence of the scheduler's, or to a refusal."""

from __future__ import annotations

from controller.scheduler.actions import Refusal, Refused
from controller.scheduler.events import NewSequence
from controller.scheduler.sequence import Sequence
from tidepipe_common.types.sampling import SamplingParams

_NONE: frozenset[int] = frozenset()


def refusal(arrival: NewSequence, longest: int, here: int, most: int) -> Refused | None:
    """Why it cannot be taken, if so.

    longest: tokens of the longest sequence. here: sequences that are here already; most: as many as may be.
    """
    if here >= most:
        detail = f"{here} sequences are here already, the most that are accepted"
        return Refused(arrival.sequence_id, Refusal.QUEUE_FULL, detail)
    if arrival.prompt and len(arrival.prompt) < longest:
        return None
    detail = (
        f"the prompt has {len(arrival.prompt)} tokens; it must have at least 1 and leave room for "
        f"output within {longest} tokens"
    )
    return Refused(arrival.sequence_id, Refusal.INVALID, detail)


def new_sequence(arrival: NewSequence, longest: int, eos: frozenset[int], now: float) -> Sequence:
    """One that waits. longest: its tokens at most. eos: what ends it unless it ignores that."""
    room = longest - len(arrival.prompt)
    limit = arrival.sampling.max_tokens
    return Sequence(
        sequence_id=arrival.sequence_id,
        prompt=arrival.prompt,
        sampling=arrival.sampling,
        max_tokens=room if limit is None else min(limit, room),
        arrived=now,
        deadline=arrival.deadline,
        output=list(arrival.output),
        given=len(arrival.output),
        first_token_due=arrival.first_token_due,
        tpot_s=arrival.tpot_s,
        end_tokens=_end_tokens(arrival.sampling, eos),
    )


def _end_tokens(sampling: SamplingParams, eos: frozenset[int]) -> frozenset[int]:
    usual = _NONE if sampling.ignore_eos else eos
    # Mostly one set serves all sequences.
    return usual.union(sampling.stop_token_ids) if sampling.stop_token_ids else usual
