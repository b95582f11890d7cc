"""Who can still be in time: whose first token, and whose further ones. Pure.

An engine that takes prompts as they come makes everybody late once the line is longer than the first token's
target. Those who are late already lose nothing more when others, who can still be in time, go first.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from controller.scheduler.admission import WaitingQueue
from controller.scheduler.scheduler import Scheduler
from controller.scheduler.sequence import Sequence

SAMPLE = 256
"""Waiting prompts that stand for all."""
FORGIVEN_S = 0.2
"""By so much the next token may be behind its target and yet catch up."""
PATIENCE = 6.0
"""Times the first token's target that somebody waits until he is first, however late."""
TOGETHER_S = 1.0
"""Requests that came within so long of the newest came together."""


class Load(NamedTuple):
    """What there is to do.

    tokens: of prompts that wait and are in time; together: of these, what came at once. waiting: whether
    anybody waits. rows: decode rows of a step. decoding: sequences that decode; began: of
    these, whose first token was in time; in_time: whose further ones are as well. watched: whether anybody
    sees tokens as they come; if all want whole answers only, no token's time is anybody's.
    """

    tokens: int = 0
    together: int = 0
    waiting: bool = False
    rows: float = 0.0
    decoding: int = 0
    began: int = 0
    in_time: int = 0
    watched: bool = True


def load_of(scheduler: Scheduler, ttft_s: float, tpot_s: float, now: float, *, watched: bool = True) -> Load:
    """As the scheduler has it now."""
    line, batches = scheduler.waiting, scheduler.batches
    some = list(islice(line, SAMPLE))
    timely = [one for one in some if not _late(one, ttft_s, now)]
    newest = max((one.arrived for one in timely), default=0.0)
    share = len(line) / max(1, len(some))
    decoding = [*batches.pool, *(one for batch in batches.batches for one in batch.members)]
    began = [one for one in decoding if _began_in_time(one, ttft_s)]
    return Load(
        int(share * sum(one.to_compute for one in timely)),
        int(share * sum(one.to_compute for one in timely if newest - one.arrived <= TOGETHER_S)),
        len(line) > 0,
        len(decoding) / max(1, len(batches.batches)),
        len(decoding),
        len(began),
        sum(_goes_on_in_time(one, tpot_s, now) for one in began),
        watched,
    )


def put_late_last(line: WaitingQueue, ttft_s: float, now: float) -> None:
    """Who is late stands behind those who are not, in the order that is there; whoever waits for very long is
    first."""
    if line.first is None or not _mixed(line, ttft_s, now):
        return
    place = {}
    for index, one in enumerate(line):
        group = 0 if now - one.arrived > PATIENCE * ttft_s else 2 if _late(one, ttft_s, now) else 1
        place[one.sequence_id] = group * len(line) + index
    line.order_by(lambda one: place[one.sequence_id])


def _mixed(line: Iterable[Sequence], ttft_s: float, now: float) -> bool:
    """Does somebody stand before those whose turn it is?"""
    late_before = False
    for one in line:
        late = _late(one, ttft_s, now)
        if now - one.arrived > PATIENCE * ttft_s:
            if late_before:
                return True
        elif late:
            late_before = True
        elif late_before:
            return True
    return False


def _late(one: Sequence, ttft_s: float, now: float) -> bool:
    """It has no token yet, and will not have one in time."""
    return one.first_token_at is None and not one.output and now - one.arrived > ttft_s


def _began_in_time(one: Sequence, ttft_s: float) -> bool:
    return one.first_token_at is not None and one.first_token_at - one.arrived <= ttft_s


def _goes_on_in_time(one: Sequence, tpot_s: float, now: float) -> bool:
    assert one.first_token_at is not None, "it decodes"
    return one.first_token_at + (len(one.output) - 1) * tpot_s >= now - FORGIVEN_S
