"""The rules of slack (saved TPOT, EcoServe), the same for the live report, for PaDG and for virtual time.

Each asks about one sequence or about columns of numbers, so that whoever fast-forwards over steps, and has no
scheduler to ask, reckons as the scheduler does.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import chain
from math import fsum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from controller.scheduler.prompt_pace import PromptPace
from controller.scheduler.sequence import Sequence
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import PrefillWork, chunk_pairs
from tidepipe_common.types.plan import Phase

LATE_SHARE = 0.02
"""Of the sequences may find that decoding pauses for too long. Fewer than may miss their targets: many are
near the edge, and the next pause takes them along."""
LOW_SHARE = 0.1
AMPLE_S = 3600.0
"""Slack of a sequence that has not begun to decode, where decoding is as fast as its target."""
LEAST_LOST = 0.25
"""Of a prompt's time that decoding loses at least where prompts ride on its steps: while weights are read
anyway tokens seem to cost nothing, until there are more of them."""
LEAST_DECODING = 0.05
"""Share of its time that an instance is taken to decode at least, however many prompts came lately."""

Floats = npt.NDArray[np.float64]
Rows = Floats
"""One for each sequence, of its numbers in their order: who has many of them keeps them in such an array."""


class Decoding(NamedTuple):
    """One sequence that decodes. produced: tokens since its first one, which counts, at `first_at`.

    ahead: tokens that it is still expected to produce.
    """

    first_at: float
    produced: int
    ahead: float
    tpot_s: float


def decoding_of(sequence: Sequence) -> Decoding | None:
    """The same of a sequence of the scheduler; None if it has no target, or no token yet."""
    if sequence.tpot_s is None or sequence.first_token_at is None:
        return None
    output = len(sequence.output)
    ahead = tokens_ahead(sequence.predicted_p50, output, sequence.max_tokens)
    return Decoding(sequence.first_token_at, output - sequence.given, ahead, sequence.tpot_s)


@dataclass(frozen=True, slots=True)
class SlackReport:
    """Saved TPOT (EcoServe, Algorithm 1) of the sequences that decode and have a target, seconds.

    low_s: 10th percentile. low_latest_s: what nearly all reach of how long decoding may yet pause, or a
    window of prompts on its steps may be, so that a sequence still meets its target at its expected end;
    those that do not decode yet count as well.
    """

    count: int
    mean_s: float
    low_s: float
    low_latest_s: float


def tokens_ahead(expected: float | None, produced: int, most: int) -> float:
    """Output tokens still to come. expected: of the whole output; most: that it may have."""
    return min(max(0.0, (expected or 0.0) - produced), most - produced)


def tokens_ahead_each(expected: Floats, produced: Floats, most: Floats) -> Floats:
    """`tokens_ahead` of columns of sequences."""
    return np.asarray(np.minimum(np.maximum(0.0, expected - produced), most - produced))


def columns_of(rows: Many[Many[float]] | Rows, count: int) -> Floats:
    """The `count` numbers of each, one kind after the other."""
    if not isinstance(rows, np.ndarray):
        rows = np.fromiter(chain.from_iterable(rows), float, count * len(rows)).reshape(len(rows), count)
    return rows.T


def due(decoding: Many[Decoding] | Rows) -> Floats:
    """When the next token of each is due: what it has saved is the time until then."""
    first_at, produced, _, tpot_s = columns_of(decoding, 4)
    return np.asarray(first_at + produced * tpot_s)


def latest_resume(decoding: Many[Decoding] | Rows, round_s: float) -> Floats:
    """The latest times at which they must decode again: what each has saved, and will yet save.

    round_s: until each sequence has its next token. There is no margin on its target: LATE_SHARE is one, and
    any share of a tight target is more than all that rounds leave of it.
    """
    _, _, ahead, tpot_s = columns_of(decoding, 4)
    return np.asarray(due(decoding) + ahead * (tpot_s - round_s))


def nearly_all(values: Floats, share: float = LATE_SHARE) -> float:
    """What all values but this share reach."""
    place = int(share * len(values))
    return float(np.partition(values, place)[place])


def slack_of(
    decoding: Many[Decoding] | Rows, idle: Iterable[float], round_s: float, now: float, lost: float = 1.0
) -> SlackReport | None:
    """Of those that decode, and of those that do not yet, by their TPOT; None if there is nobody.

    These have no time to lose yet, but must not find the instance too slow. lost: seconds that decoding loses
    to a second of prompts: so much longer may a window be than decoding could pause.
    """
    decoding = columns_of(decoding, 4).T
    begins = [AMPLE_S if round_s <= tpot_s else -AMPLE_S for tpot_s in idle]
    until = np.concatenate((latest_resume(decoding, round_s) - now, np.array(begins, float)))
    if not len(until):
        return None
    low_latest_s = nearly_all(until)
    if 0.0 < low_latest_s < AMPLE_S:
        low_latest_s = min(AMPLE_S, low_latest_s / lost)
    if not len(decoding):
        return SlackReport(0, AMPLE_S, AMPLE_S, low_latest_s)
    saved = due(decoding) - now
    mean_s = fsum(saved.tolist()) / len(saved)
    return SlackReport(len(saved), mean_s, nearly_all(saved, LOW_SHARE), low_latest_s)


class TokenSeconds(NamedTuple):
    """Seconds of a prompt's token, in a step of its own (`apart`), and beside decode rows (`riding`)."""

    apart: float
    riding: float


def round_seconds(
    cost: StepCost,
    pace: PromptPace,
    rows: int,
    context: int,
    stages: int,
    token_s: TokenSeconds,
    dispatch_s: float,
) -> float:
    """A token for each of `rows` sequences, also for those that do not decode yet: they soon will.

    Prompts go on taking the share of the time that they took lately. context: KV tokens that are held.
    dispatch_s: see MeasuredDispatch.
    """
    if not rows:
        return 0.0
    stages = max(1, stages)
    batch = -(-rows // stages)
    share = pace.share(*token_s)
    spent = stages * cost.linear_s(batch) + cost.attention_s(context, 0.0) + dispatch_s
    return spent / max(LEAST_DECODING, 1.0 - share)


def token_seconds(
    cost: StepCost, rows: int, stages: int, step_tokens: int, paid_s: float = 0.0
) -> TokenSeconds:
    """Of an instance where so many sequences decode. step_tokens: of a step at most.

    paid_s: what a token beside decode rows cost lately, where steps vary; 0: as in steps of the largest size.
    """
    batch = max(1, -(-rows // max(1, stages)))
    ridden = max(1, step_tokens - batch)
    riding_s = paid_s or max(0.0, cost.linear_s(batch + ridden) - cost.linear_s(batch)) / ridden
    return TokenSeconds(cost.linear_s(step_tokens) / step_tokens, riding_s)


def window_cost(token_s: TokenSeconds) -> float:
    """Seconds that decoding loses to a second of prompts, where they ride on its steps; see LEAST_LOST."""
    return min(1.0, max(LEAST_LOST, token_s.riding / token_s.apart)) if token_s.apart else 1.0


def rounds_beside_prompts(
    cost: StepCost,
    pace: PromptPace,
    *,
    here: int,
    decoding: int,
    context: int,
    stages: int,
    step_tokens: int,
    paid_s: float,
    rides: bool,
    dispatch_s: float,
) -> tuple[float, float]:
    """Seconds of a round once all who are `here` decode, see round_seconds; and what those who do now lose to
    a second of prompts, see window_cost: all of it, unless prompts ride on their steps.

    context: KV tokens that are held. step_tokens, paid_s: see token_seconds. dispatch_s: see round_seconds.
    """
    soon = token_seconds(cost, here, stages, step_tokens, paid_s)
    now = token_seconds(cost, decoding, stages, step_tokens, paid_s)
    round_s = round_seconds(cost, pace, here, context, stages, soon, dispatch_s)
    return round_s, window_cost(now) if rides else 1.0


def in_window(first_at: float, phase: Phase, phase_since: float) -> bool:
    """Does a sequence that got its first token then belong to the prefill window that is open now?"""
    return phase is Phase.PREFILL and first_at > phase_since


class WindowPrompt(NamedTuple):
    """One prompt of a prefill window. begins_at: tokens that were found, so that nothing computes them.

    planned: tokens that are found or computed. length: all.
    """

    begins_at: int
    planned: int
    length: int


def window_of(prompts: Iterable[WindowPrompt]) -> tuple[PrefillWork, PrefillWork]:
    """The prefill window, done prompts included, and what is left of it."""
    window_tokens = left_tokens = 0
    window_pairs = left_pairs = 0.0
    for begins_at, planned, length in prompts:
        window_tokens += length - begins_at
        window_pairs += chunk_pairs(begins_at, length - begins_at)
        left_tokens += length - planned
        left_pairs += chunk_pairs(planned, length - planned)
    return PrefillWork(window_tokens, window_pairs), PrefillWork(left_tokens, left_pairs)


def window_left_s(dues: Iterable[float], now: float) -> float | None:
    """Until the window's first prompt must have its token; those that missed it are not waited for."""
    return min((at - now for at in dues if at > now), default=None)
