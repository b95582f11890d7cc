"""How many prompt tokens the next step carries when sequences have latency targets.

One rule for the live scheduler and for virtual time. Among the sizes that are worth having it takes the one
at which the fewest sequences are expected to miss a target: waiting prompts by their first token, decoding
sequences by the end that is expected of them. Each size is followed until the prompts that wait are computed:
so many rounds, each as long as it makes them; afterwards rounds are as long as prompts made them lately. So

* large steps where decoding can bear it, for then waiting prompts are at no risk;
* small ones where targets are tight and steps slow: hybrid batching with its best chunk, found for each step;
* who cannot be in time in any case is nobody's reason to be late: with only such left, throughput decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from controller.scheduler.actions import Reason
from controller.scheduler.prompt_pace import PromptPace
from controller.scheduler.slack import LEAST_DECODING, Decoding, last_due
from controller.scheduler.step_sizes import StepSizes
from tidepipe_common.latency.dispatch import DISPATCH_S
from tidepipe_common.latency.model import StepCost

LARGEST = 2048
"""Tokens of a step that are worth comparing."""
LEAST = 16
"""A step with prompts has so many tokens of them at least, whatever targets say: prompts never starve."""
NEAR_BEST = 1.05
"""Steps whose time per token is within this factor of the best are large enough."""
NEAR_HULL = 1.02
"""Sizes between two corners of the time curve are as good as these if they take no longer than this times
what the two take in turn."""
EVEN = 1.03
"""Rounds may be longer by this factor, on average, than with the same prompts spread evenly over them."""
DOUBT = 0.08
"""Of the time until a target ends, the scale of the error with which it is predicted who will miss it."""
NEGLIGIBLE = 0.002
"""Of all sequences, so many more that may miss a target are no reason for a smaller step."""
SAMPLES = 16
"""Points in time that stand for all at which prompts will come."""
MOST_PROMPTS = 256
"""Waiting prompts that are looked at one by one."""


class WaitingPrompt(NamedTuple):
    """tokens: left to compute. due: when its first token must be there; infinite without a target."""

    tokens: int
    due: float


class Coming(NamedTuple):
    """Prompts that will come, if more do as lately.

    tokens_s: tokens a second. tokens: of one prompt. ttft_s: its target.
    """

    tokens_s: float
    tokens: float
    ttft_s: float


class Turnover(NamedTuple):
    """One sequence that holds memory: tokens of its prompt, and of its output as expected."""

    prompt: int
    output: float


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What a step's size is chosen for.

    rows: decode rows that it has anyway. batches: steps of a round. context: KV tokens that a round reads.
    decoding: those with a target who had their first token in time. waiting: prompts, in order.
    prompt_share: of its time that the instance spent on prompts lately. coming: prompts to be expected.
    turnover: prompt tokens a round that full memory lets through, see `turnover_of`; 0: not known.
    """

    rows: int
    batches: int
    context: int
    decoding: Many[Decoding]
    waiting: Many[WaitingPrompt]
    prompt_share: float
    coming: Coming
    turnover: float


@dataclass(frozen=True, slots=True)
class StepChoice:
    """prompts: tokens of prompts that the step may have."""

    prompts: int
    reason: Reason


def turnover_of(running: Many[Turnover], kv_tokens: int) -> float:
    """Prompt tokens that can be computed per round while memory is full.

    Each sequence makes room for another one like it after as many rounds as its output has tokens; on average
    it holds its prompt and half of its output.
    """
    held = sum(one.prompt + 0.5 * one.output for one in running)
    if not held:
        return 0.0
    return kv_tokens / held * sum(one.prompt / max(1.0, one.output) for one in running)


def coming_of(pace: PromptPace, running: Many[Turnover], ttft_s: Many[float]) -> Coming:
    """As many prompts as lately, like those that run, with the targets of those that wait."""
    tokens = sum(one.prompt for one in running) / len(running) if running else 1.0
    return Coming(pace.tokens_s, max(1.0, tokens), min(ttft_s, default=math.inf))


class StepBudget:
    """See the module. Pure; the cost model may be corrected by measured times meanwhile."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        self._worth = StepSizes(cost, LARGEST, NEAR_BEST).largest
        # With many decode rows a step is larger than any is worth to be for itself.
        self._sizes = StepSizes(cost, 2 * LARGEST)
        self._known: dict[int, list[int]] = {}

    def choose(self, load: StepLoad, now: float) -> StepChoice:
        """The next step's prompt tokens."""
        cost, rows, batches = self._cost, load.rows, load.batches
        rest = cost.attention_s(load.context, 0.0) + DISPATCH_S
        empty = batches * cost.linear_s(max(1, rows)) + rest
        sizes = self._within_turnover(self._candidates(rows), load, rest)
        prompts = np.array(sizes, dtype=float) - rows
        rounds = batches * np.array([cost.linear_s(size) for size in sizes]) + rest
        late = _late_prompts(load, batches * prompts, rounds, now)
        late += _late_to_come(load, batches * prompts, rounds, now)
        slow = _late_ends(load, batches * prompts, rounds, empty, now)
        missed = late + slow
        # The largest that is as good as any; where nobody can be in time any more, the largest of all.
        enough = missed.min() + NEGLIGIBLE * (len(load.decoding) + len(load.waiting))
        best = int(np.flatnonzero(missed <= enough)[-1])
        return StepChoice(sizes[best] - rows, _reason(sizes, best, rounds, late, slow))

    def _candidates(self, rows: int) -> list[int]:
        """Sizes of a step with so many decode rows, in rising order."""
        known = self._known.get(rows)
        if known is None:
            corners = self._sizes.corners(rows)
            enough = max(self._worth, rows + self._worth // 2)
            largest = next((size for size in corners if size >= enough), max(corners[-1], rows + LEAST))
            known = self._known[rows] = self._near_hull(rows, corners, largest)
        return known

    def _near_hull(self, rows: int, corners: list[int], largest: int) -> list[int]:
        """Corners up to the largest size, and sizes between them that are as good, in steps of a half."""
        linear_s = self._cost.linear_s
        xs = [rows, *corners]
        ys = [linear_s(max(1, size)) for size in xs]
        kept = {size for size in corners if rows + LEAST <= size <= largest} | {largest}
        prompts = float(LEAST)
        while (size := rows + round(prompts)) < largest:
            if linear_s(size) <= NEAR_HULL * np.interp(size, xs, ys):
                kept.add(size)
            prompts *= 1.5
        return sorted(kept)

    def _within_turnover(self, sizes: list[int], load: StepLoad, rest: float) -> list[int]:
        """While memory is full, larger steps than it lets through only alternate with empty ones: without
        those at which a round takes longer for that, on average."""
        demand = load.turnover / load.batches
        if not demand:
            return sizes
        linear_s, rows, rest = self._cost.linear_s, load.rows, rest / load.batches
        times = [linear_s(max(1, rows)), *map(linear_s, sizes)]
        even = float(np.interp(rows + demand, [rows, *sizes], times))
        kept: list[int] = []
        for size, spent in zip(sizes, times[1:], strict=True):
            share = demand / (size - rows)
            in_turn = times[0] + share * (spent - times[0])
            if kept and share < 1.0 and in_turn + rest > EVEN * (even + rest):
                break
            kept.append(size)
        return kept


_Floats = npt.NDArray[np.float64]


def _late_prompts(load: StepLoad, prompts: _Floats, rounds: _Floats, now: float) -> _Floats:
    """Of the waiting ones, how many will probably have their first token too late, for each size.

    prompts, rounds: tokens and seconds of a round. Those that are late already do not count.
    """
    waiting = load.waiting[:MOST_PROMPTS]
    before = np.cumsum([one.tokens for one in waiting])
    left = np.array([one.due for one in waiting]) - now
    counts = (left > 0.0) & np.isfinite(left)
    if not counts.any():
        return np.zeros(len(rounds))
    done = np.ceil(before[counts] / prompts[:, None]) * rounds[:, None]
    return _missed(done, left[counts])


def _late_to_come(load: StepLoad, prompts: _Floats, rounds: _Floats, now: float) -> _Floats:
    """The same of those that will come while the present ones decode: who waits now is few of all whom a step
    size that is too small makes late."""
    coming = load.coming
    if not load.decoding or not coming.tokens_s or math.isinf(coming.ttft_s):
        return np.zeros(len(rounds))
    horizon = max(0.0, sum(last_due(one) - now for one in load.decoding) / len(load.decoding))
    at = horizon * (np.arange(SAMPLES) + 0.5) / SAMPLES
    before = sum(one.tokens for one in load.waiting) + coming.tokens_s * at
    spent = (rounds / prompts)[:, None]
    waited = np.maximum(before * spent - at, 0.0) + coming.tokens * spent
    each = coming.tokens_s / coming.tokens * horizon / SAMPLES
    return each * _missed(waited, np.full(SAMPLES, coming.ttft_s))


def _late_ends(load: StepLoad, prompts: _Floats, rounds: _Floats, empty: float, now: float) -> _Floats:
    """Of those that decode, how many will probably end too late, for each size.

    empty: seconds of a round without prompts. Those that would be late even so do not count.
    """
    if not load.decoding:
        return np.zeros(len(rounds))
    left = np.array([last_due(one) for one in load.decoding]) - now
    ahead = np.maximum([one.ahead for one in load.decoding], 1.0)
    counts = left > ahead * empty
    left, ahead = left[counts], ahead[counts]
    usual = empty / max(LEAST_DECODING, 1.0 - load.prompt_share)
    # Until none waits: others come meanwhile, and with steps that are too small there always is one.
    gained = np.maximum(prompts - load.coming.tokens_s * rounds, 1e-9)
    busy = np.ceil(sum(one.tokens for one in load.waiting) / gained)
    with_prompts = np.minimum(ahead, busy[:, None])
    ends = with_prompts * rounds[:, None] + (ahead - with_prompts) * usual
    return _missed(ends, left)


def _missed(predicted: _Floats, left: _Floats) -> _Floats:
    """How many of those that have so much time left will probably need more (logistic errors)."""
    excess = np.clip((predicted - left) / np.maximum(DOUBT * left, 1e-6), -30.0, 30.0)
    return np.asarray((1.0 / (1.0 + np.exp(-excess))).sum(axis=1))


def _reason(sizes: list[int], best: int, rounds: _Floats, late: _Floats, slow: _Floats) -> Reason:
    if best == len(sizes) - 1:
        text = "steps as large as is worth it: nobody is late for that"
    elif best == 0:
        text = "the smallest steps: decoding can bear no more"
    else:
        text = "larger steps would make more answers slow than prompts late"
    numbers = {
        "step_tokens": float(sizes[best]),
        "round_ms": round(1000.0 * float(rounds[best]), 1),
        "late_prompts": round(float(late[best]), 1),
        "slow_answers": round(float(slow[best]), 1),
    }
    return Reason(text, numbers)
