"""The budget of prompt tokens of the next step, where sequences have latency targets.

One rule for the live scheduler and for virtual time. Among the sizes that are worth having it takes the one
at which the fewest sequences are expected to miss a target if all steps were so large from now on. So

* large steps where decoding can bear it, for then waiting prompts are at no risk;
* small ones where targets are tight and steps slow: hybrid batching with its best chunk, found for each step;
* who cannot be in time in any case is nobody's reason to be late: with only such left, throughput decides.

A prompt is late if the line before it is too long: those that wait are counted one by one, those that will
come by how long the line will probably be then, which chance makes long as often as steps are nearly filled.
A sequence that decodes has some time to spare beyond what decoding alone takes until its end; prompts cost
it that, so many seconds a token. It is late if more prompts will probably come than that pays for, and steps
are large enough to compute as many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from controller.scheduler.actions import Reason
from controller.scheduler.prompt_pace import MEMORY_S, PromptPace
from controller.scheduler.slack import Decoding, Floats, Rows, columns_of
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
"""Of the time until a first token is due, the scale of the error in predicting when it comes."""
DOUBT_OF_ENDS = 0.03
"""The same of the time until a sequence is to end, beside what prompts do to it that come by chance."""
LOGISTIC = math.sqrt(3.0) / math.pi
"""Scale of a logistic distribution over its standard deviation."""
NEGLIGIBLE = 0.0005
"""Of all sequences, so many more that may miss a target are no reason for a smaller step."""
AHEAD = 2.0
"""Prompts to come are looked at so many of their targets ahead: who comes within one waits for another."""
SAMPLES = 16
"""Points in time that stand for all at which prompts will come."""
MOST_PROMPTS = 256
"""Waiting prompts that are looked at one by one."""
MOST_DECODING = 256
"""Of the sequences that decode: where there are more, some stand for all."""


class WaitingPrompt(NamedTuple):
    """tokens: left to compute. due: when its first token must be there; infinite without a target."""

    tokens: int
    due: float


class Coming(NamedTuple):
    """Prompts that will come, if more do as lately: one by one, at times that chance decides.

    tokens_s: tokens a second. tokens: of one prompt. clump: variance over mean of the tokens of a time.
    ttft_s: time that each has for its first token when it comes.
    """

    tokens_s: float
    tokens: float
    clump: float
    ttft_s: float


class Turnover(NamedTuple):
    """One sequence that holds memory: tokens of its prompt, and of its output as expected.

    ttft_s: time that it had for its first token when it came here; infinite without a target.
    """

    prompt: int
    output: float
    ttft_s: float = math.inf


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What a step's size is chosen for.

    rows: decode rows that it has anyway. batches: steps of a round. context: KV tokens that a round reads.
    decoding: those with a target who had their first token in time. waiting: prompts, in order. coming:
        prompts to be expected. turnover: prompt tokens a round that full memory lets through, see
        `turnover_of`; 0: not known. free: tokens of memory that nobody has. dispatch_s: see MeasuredDispatch.
    """

    rows: int
    batches: int
    context: int
    decoding: Many[Decoding] | Rows
    waiting: Many[WaitingPrompt]
    coming: Coming
    turnover: float
    free: int = 0
    dispatch_s: float = DISPATCH_S


@dataclass(frozen=True, slots=True)
class StepChoice:
    """prompts: tokens of prompts that the step may have."""

    prompts: int
    reason: Reason


def turnover_of(running: Many[Turnover] | Rows, kv_tokens: int) -> float:
    """Prompt tokens that can be computed per round while memory is full.

    Each sequence makes room for another one like it after as many rounds as its output has tokens; on average
    it holds its prompt and half of its output.
    """
    prompts, outputs, _ = columns_of(running, 3)
    held = float((prompts + 0.5 * outputs).sum())
    if not held:
        return 0.0
    return kv_tokens / held * _in_turn(prompts / np.maximum(1.0, outputs))


def coming_of(pace: PromptPace, running: Many[Turnover] | Rows) -> Coming:
    """As many prompts as lately, like those that run. Poisson arrivals: a clump is a prompt, seen from one of
    its tokens. Who came too late already says nothing of the time that others will have."""
    prompts, _, times = columns_of(running, 3)
    total = float(prompts.sum())
    clump = float((prompts * prompts).sum()) / total if total else 1.0
    timely = times[(times > 0.0) & (times < math.inf)]
    ttft_s = _in_turn(timely) / len(timely) if len(timely) else math.inf
    return Coming(pace.tokens_s, max(1.0, total / max(1, len(prompts))), max(1.0, clump), ttft_s)


def _in_turn(values: Floats) -> float:
    """Their sum, one after the other: the same whatever the library adds in blocks."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


class StepBudget:
    """See the module. Pure; the cost model may be corrected by measured times meanwhile."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        self._worth = StepSizes(cost, LARGEST, NEAR_BEST).largest
        # With many decode rows a step is larger than any is worth to be for itself.
        self._sizes = StepSizes(cost, 2 * LARGEST)
        self._known: dict[int, list[int]] = {}
        self._paid = self._bought = self._paid_at = 0.0

    def choose(self, load: StepLoad, now: float) -> StepChoice:
        """The next step's prompt tokens."""
        cost, rows, batches = self._cost, load.rows, load.batches
        rest = cost.attention_s(load.context, 0.0) + load.dispatch_s
        empty = batches * cost.linear_s(max(1, rows)) + rest
        sizes = self._within_turnover(self._candidates(rows), load, rest)
        prompts = np.array(sizes, dtype=float) - rows
        rounds = batches * np.array([cost.linear_s(size) for size in sizes]) + rest
        steps = _Rounds(batches * prompts, rounds, (rounds - empty) / (batches * prompts), empty)
        ends = _ends_of(load.decoding, now)
        late = _late_prompts(load, steps, now) + _late_to_come(load, steps, ends)
        slow = _late_ends(load, steps, ends)
        missed = late + slow
        # The largest that is as good as any; where nobody can be in time any more, the largest of all.
        enough = missed.min() + NEGLIGIBLE * (len(load.decoding) + len(load.waiting))
        best = int(np.flatnonzero(missed <= enough)[-1])
        if rows:
            waiting = sum(one.tokens for one in load.waiting)
            self._pay(min(waiting, float(steps.prompts[best])), float(steps.price[best]), now)
        return StepChoice(sizes[best] - rows, _reason(sizes, best, rounds, late, slow))

    @property
    def paid_s(self) -> float:
        """Seconds by which a prompt's token made rounds longer lately; 0 before the first one."""
        return self._paid / self._bought if self._bought else 0.0

    def _pay(self, tokens: float, price: float, now: float) -> None:
        kept = math.exp(-max(0.0, now - self._paid_at) / MEMORY_S)
        self._bought = self._bought * kept + tokens
        self._paid = self._paid * kept + tokens * price
        self._paid_at = now

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
        """Larger steps than memory lets through only alternate with empty ones: without those at which a
        round takes longer for that, on average. What is free it lets through besides, within the time that
        prompts have: else a line that chance has made could not be caught up with."""
        demand = load.turnover / load.batches
        if not demand:
            return sizes
        linear_s, rows, rest = self._cost.linear_s, load.rows, rest / load.batches
        times = [linear_s(max(1, rows)), *map(linear_s, sizes)]
        demand += load.free * (times[0] + rest) / load.coming.ttft_s
        even = float(np.interp(rows + demand, [rows, *sizes], times))
        kept: list[int] = []
        for size, spent in zip(sizes, times[1:], strict=True):
            share = demand / (size - rows)
            in_turn = times[0] + share * (spent - times[0])
            if kept and share < 1.0 and in_turn + rest > EVEN * (even + rest):
                break
            kept.append(size)
        return kept


class _Rounds(NamedTuple):
    """For each size: prompt tokens and seconds of a round, and by how much a token makes it longer.

    empty: seconds of a round without prompts.
    """

    prompts: Floats
    seconds: Floats
    price: Floats
    empty: float


class _Ends(NamedTuple):
    """Of those that decode: seconds until the last token is due, and rounds until it comes.

    weight: how many each of them stands for.
    """

    left: Floats
    ahead: Floats
    weight: float


def _ends_of(decoding: Many[Decoding] | Rows, now: float) -> _Ends:
    some = decoding[:: -(-len(decoding) // MOST_DECODING) or 1]
    first_at, produced, ahead, tpot_s = columns_of(some, 4)
    left = first_at + (produced + ahead - 1.0) * tpot_s - now
    return _Ends(left, np.maximum(ahead, 1.0), len(decoding) / max(1, len(some)))


def _late_prompts(load: StepLoad, steps: _Rounds, now: float) -> Floats:
    """Of the waiting ones, how many will probably have their first token too late, for each size. Those that
    are late already do not count."""
    waiting = load.waiting[:MOST_PROMPTS]
    before = np.cumsum([one.tokens for one in waiting])
    left = np.array([one.due for one in waiting]) - now
    counts = (left > 0.0) & np.isfinite(left)
    if not counts.any():
        return np.zeros(len(steps.seconds))
    done = np.ceil(before[counts] / steps.prompts[:, None]) * steps.seconds[:, None]
    left = left[counts]
    return np.asarray(_likely((done - left) / np.maximum(DOUBT * left, 1e-6)).sum(axis=1))


def _late_to_come(load: StepLoad, steps: _Rounds, ends: _Ends) -> Floats:
    """The same of those that will come while the present ones decode: who waits now is few of all whom a step
    size that is too small makes late. No further ahead than AHEAD: a line that has grown by then has larger
    steps chosen for it, and a size that is a little too small for what comes can be taken until then."""
    coming = load.coming
    if not len(ends.left) or not coming.tokens_s or math.isinf(coming.ttft_s):
        return np.zeros(len(steps.seconds))
    horizon = max(1e-3, min(float(ends.left.mean()), AHEAD * coming.ttft_s))
    at = horizon * (np.arange(SAMPLES) + 0.5) / SAMPLES
    speed = steps.prompts / steps.seconds
    # Of the line that it finds; on average half a round is over before a step begins that can take it.
    bearable = coming.ttft_s * speed - coming.tokens - 0.5 * steps.prompts
    line = sum(one.tokens for one in load.waiting)
    late = _exceeds(
        bearable[:, None], line, coming.tokens_s - speed[:, None], coming.tokens_s * coming.clump, at
    )
    each = coming.tokens_s / coming.tokens * horizon / SAMPLES
    return np.asarray(each * late.sum(axis=1))


def _late_ends(load: StepLoad, steps: _Rounds, ends: _Ends) -> Floats:
    """Of those that decode, how many will probably end too late, for each size. Those that would be late even
    without prompts do not count."""
    spare = ends.left - ends.ahead * steps.empty
    counts = spare > 0.0
    if not counts.any():
        return np.zeros(len(steps.seconds))
    left, spare = ends.left[counts], spare[counts]
    coming, price = load.coming, steps.price[:, None]
    computed = (steps.prompts / steps.seconds)[:, None] * left
    there = sum(one.tokens for one in load.waiting) + coming.tokens_s * left
    doubt = DOUBT_OF_ENDS * left
    by_chance = LOGISTIC * price * np.sqrt(coming.tokens_s * coming.clump * left)
    slow = _likely((price * computed - spare) / doubt)
    slow *= _likely((price * there - spare) / np.hypot(by_chance, doubt))
    return np.asarray(ends.weight * slow.sum(axis=1))


def _exceeds(level: Floats, start: float, drift: Floats, variance_s: float, after: Floats) -> Floats:
    """How likely a line that is `start` long now is longer than `level` after so many seconds, if it grows by
    `drift` a second and never below nothing: a reflected Brownian motion (Harrison, Brownian Motion and
    Stochastic Flow Systems, 1985, section 1.8)."""
    spread = np.sqrt(max(variance_s, 1e-9) * after)
    grown = start + drift * after
    steep = 2.0 * drift * level / max(variance_s, 1e-9)
    stays = np.exp(np.minimum(np.maximum(steep, -700.0), 700.0))
    found = _beyond((level - grown) / spread) + stays * _beyond((level + grown) / spread)
    return np.where(level > 0.0, np.minimum(found, 1.0), 1.0)


def _beyond(deviations: Floats) -> Floats:
    """Of a normal distribution, what lies beyond so many standard deviations."""
    scaled = deviations * math.sqrt(0.5)
    found = np.fromiter(map(math.erfc, scaled.ravel().tolist()), float, scaled.size)
    return 0.5 * found.reshape(scaled.shape)


def _likely(excess: Floats) -> Floats:
    """How likely what is predicted to be exceeded by so many times the scale of the error is exceeded."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.minimum(np.maximum(excess, -30.0), 30.0))))


def _reason(sizes: list[int], best: int, rounds: Floats, late: Floats, slow: Floats) -> Reason:
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
