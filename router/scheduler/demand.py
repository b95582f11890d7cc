"""How many requests come, and how many will have come to be asked for when an instance that is asked for now
serves: arrivals by the second, their level since the last change, and their trend."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from router.scheduler.request import RouteRequest
from router.scheduler.slo import SloTarget
from router.scheduler.steady_state import Sizes
from tidepipe_common.latency.work import chunk_pairs

BIN_S = 1.0
HISTORY = 240
"""Bins that are kept: a rise that takes minutes is a trend, one within seconds a change of level."""
LEAST_BINS = 5
"""Before which nothing is said."""
LOOKS = (3, 5, 8, 12, 20, 30, 45)
"""Newest bins that are compared with those before: a large change shows in few, a small one needs more."""
SURE = 4.5
"""Standard deviations that make a change: below, it is a burst."""
USUAL_DISPERSION, USUAL_BINS = 4.0, 10.0
"""Variance over mean of counts, and the bins that this stands for: until they are seen, arrivals are taken to
come in bursts (gaps with a coefficient of variation of 2)."""
LINE_BINS = 30
"""That a trend needs."""
MEMORY = 400.0
"""Requests over which sizes are averaged."""
KEPT = 1024
"""Answers whose lengths are averaged."""
ENOUGH, SHARE = 32, 0.75
"""Answers from which their length is known: they have ended, or their instances say what they expect; where
nobody says that, so large a part of all that were asked must have ended."""
USUAL_SPREAD = 1.6
"""Mean square of outputs by their squared mean, until enough have ended."""
RATE_BINS = 30
"""Over which the present rate is averaged."""
ANSWERS_S = 60.0
"""Over which the length of answers is averaged."""
LEAST_LOOKS, LEAST_ENDS = 20, 5.0
"""Before so many seconds and ends few answers can have ended."""
FRESH_S = 1.0
"""A request that is older when it comes has been here before."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests of late. rate: per second."""

    rate: float
    sizes: Sizes
    slo: SloTarget


@dataclass(frozen=True, slots=True)
class Outlook:
    """Requests per second: now, and the growth of that per second (0 unless it is beyond doubt)."""

    rate: float
    growth: float

    def ahead(self, seconds: float) -> float:
        """In so many seconds."""
        return self.rate + max(0.0, self.growth) * seconds


class Demand:
    """The one meter of what is asked for. Background requests do not count: nobody waits for them."""

    def __init__(self) -> None:
        self._bins: deque[int] = deque(maxlen=HISTORY)
        self._open: float | None = None
        self._count = 0
        self.fresh = False
        """Has a second passed since the last outlook?"""
        self._since = 0
        self._dispersion = USUAL_DISPERSION
        self._asked = 0
        self._slo: SloTarget | None = None
        self._prompt = _Moments()
        self._pairs = _Moments()
        self._answers = _Answers()
        self._foreseen = _Moments()
        self._found = _Moments()

    def arrived(self, request: RouteRequest, now: float) -> None:
        """Somebody asks, whether it is served or refused."""
        if request.background or request.brought or now - request.arrived > FRESH_S:
            return
        self.pass_time(now)
        self._count += 1
        self._asked += 1
        self._slo = request.slo
        self._prompt.add(request.prompt_tokens)
        self._pairs.add(chunk_pairs(0, request.prompt_tokens))
        self._foreseen.add(request.foreseen)

    def sent(self, prompt_tokens: int, found: int) -> None:
        """To an instance, where so many tokens of the prompt were computed before."""
        self._found.add(found / max(1, prompt_tokens))
        self._answers.began(prompt_tokens)

    def ended(self, prompt_tokens: int, output_tokens: int) -> None:
        """An answer is complete."""
        self._answers.ended(prompt_tokens, output_tokens)

    def held(self, tokens: int, sequences: int = 0, expected: float = 0.0) -> None:
        """Once a second: prompt and output so far of all that instances have, how many these are, and the
        output that each is expected to have; 0: nobody knows."""
        self._answers.look(tokens, sequences, expected)

    def pass_time(self, now: float) -> None:
        """Close the seconds that are over."""
        if self._open is None:
            self._open = now
        passed = int((now - self._open) / BIN_S)
        if passed <= 0:
            return
        for _ in range(min(passed, HISTORY)):
            self._bins.append(self._count)
            self._count = 0
            self._since = min(self._since + 1, HISTORY)
        self._open += passed * BIN_S
        self.fresh = True

    @property
    def sizes(self) -> Sizes | None:
        """None before the first request."""
        if self._prompt.mean is None or self._pairs.mean is None:
            return None
        left = 1.0 - (self._found.mean or 0.0)
        output = self.output or self._foreseen.mean or 1.0
        return Sizes(
            self._prompt.mean * left,
            self._pairs.mean * left,
            max(1.0, output),
            self._prompt.spread(),
            self._answers.spread,
            found=self._prompt.mean * (1.0 - left),
        )

    @property
    def output(self) -> float | None:
        """Mean tokens of an answer; None: too little is known."""
        return self._answers.mean

    def mix(self, part: float = 1.0) -> Mix | None:
        """What is asked for, or a part of it; None: too little is known."""
        sizes = self.sizes
        if sizes is None or self._slo is None or not self._answers.known(self._asked):
            return None
        lately = list(self._bins)[-RATE_BINS:] or [self._count]
        return Mix(part * sum(lately) / (len(lately) * BIN_S), sizes, self._slo)

    def mean(self, seconds: float) -> float | None:
        """Requests per second over so many; None before that."""
        count = round(seconds / BIN_S)
        newest = list(self._bins)[-count:]
        return sum(newest) / (count * BIN_S) if len(newest) == count else None

    def outlook(self) -> Outlook | None:
        """None while too little is known."""
        self.fresh = False
        counts = list(self._bins)
        if len(counts) < LEAST_BINS:
            return None
        before = counts[-self._since :]
        since = _since_change(before, self._dispersion)
        if since < len(before):
            # Bursts stay as they were.
            self._dispersion = _dispersion(before[:-since], self._dispersion)
            self._since = since
        same = counts[-self._since :]
        level, dispersion = sum(same) / len(same), _dispersion(same, self._dispersion)
        rate, growth = level - math.sqrt(dispersion * level / len(same)), 0.0
        if (line := _trend(counts)) is not None:
            end, growth = line
            rate = max(rate, end)
        return Outlook(max(0.0, rate) / BIN_S, growth / BIN_S**2)


class _Moments:
    """Mean, and mean square, of the last MEMORY values, about."""

    def __init__(self) -> None:
        self.mean: float | None = None
        self._square = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        self._weight = min(self._weight + 1.0, MEMORY)
        self.mean = value if self.mean is None else self.mean + (value - self.mean) / self._weight
        self._square += (value * value - self._square) / self._weight

    def spread(self, usual: float = 1.0, weight: float = 0.0) -> float:
        """Mean square by squared mean; what is usual counts as so many values."""
        if not self.mean:
            return max(1.0, usual)
        seen = max(1.0, self._square / self.mean**2)
        return (weight * usual + self._weight * seen) / (weight + self._weight)


class _Answers:
    """How long answers are.

    The mean of those that have ended would be short for minutes after every rise: the short ones end first.
    So those that run count by what is expected of them; where nobody knows that, what counts is the tokens
    that were produced for each answer that ended.
    """

    def __init__(self) -> None:
        self._ended: deque[int] = deque(maxlen=KEPT)
        self._lengths = _Moments()
        self._all = self._sum = 0
        self._running, self._expected = 0, 0.0
        self._held: int | None = None
        self._moved = 0
        self._produced = 0.0
        self._ends = 0.0
        self._new_ends = 0
        self._looks = 0

    def began(self, prompt_tokens: int) -> None:
        self._moved -= prompt_tokens

    def ended(self, prompt_tokens: int, output_tokens: int) -> None:
        if len(self._ended) == KEPT:
            self._sum -= self._ended[0]
        self._ended.append(output_tokens)
        self._sum += output_tokens
        self._lengths.add(output_tokens)
        self._all += 1
        self._moved += prompt_tokens + output_tokens
        self._new_ends += 1

    def look(self, held: int, sequences: int, expected: float) -> None:
        """What is held grows by what is produced, and by what comes and goes."""
        self._looks += 1
        self._running, self._expected = sequences, expected
        if self._held is not None:
            kept = 1.0 - 1.0 / ANSWERS_S
            produced = max(0, held - self._held + self._moved)
            self._produced = kept * self._produced + produced
            self._ends = kept * self._ends + self._new_ends
        self._held, self._moved, self._new_ends = held, 0, 0

    def known(self, asked: int) -> bool:
        """Is the mean one of all that were asked, and not of the short ones among them?"""
        if self._expected > 0.0:
            return len(self._ended) + self._running >= ENOUGH
        return self._all >= max(ENOUGH, SHARE * asked)

    @property
    def mean(self) -> float | None:
        """None: nobody has ended, or few, and nobody expects anything."""
        ended, count = self._sum, len(self._ended)
        if self._expected > 0.0 and count + self._running:
            return (ended + self._running * self._expected) / (count + self._running)
        if not count:
            return None
        if self._looks < LEAST_LOOKS or self._ends < LEAST_ENDS:
            return ended / count if self._all >= ENOUGH else None
        # Cancelled answers and lost instances take tokens along: never less than those that ended had.
        return max(ended / count, self._produced / self._ends)

    @property
    def spread(self) -> float:
        return self._lengths.spread(USUAL_SPREAD, ENOUGH)


def _dispersion(counts: Sequence[int], usual: float) -> float:
    """Variance over mean of counts, with what is usual until enough bins are seen."""
    count, total = len(counts), sum(counts)
    seen = max(0.0, sum(x * x for x in counts) - total * total / count) / (total / count) if total else 0.0
    return (USUAL_BINS * usual + seen) / (USUAL_BINS + count)


def _since_change(counts: Sequence[int], usual: float) -> int:
    """The newest bins that differ from those before them for certain; all, if none do."""
    totals = list(accumulate(counts, initial=0))
    n, found, most = len(counts), len(counts), SURE
    for new in LOOKS:
        old = n - new
        if old < LEAST_BINS:
            break
        # Roots of counts deviate alike whatever the rate, and nearly without the long tail of bursts.
        expected = max(totals[old], 1) * new / old
        surprise = 2.0 * (math.sqrt(totals[n] - totals[old]) - math.sqrt(expected))
        deviation = math.sqrt(_dispersion(counts[:old], usual) * (1.0 + new / old))
        if abs(surprise) / deviation > most:
            found, most = new, abs(surprise) / deviation
    return found


def _trend(counts: Sequence[int]) -> tuple[float, float] | None:
    """A line's end and slope per bin, if arrivals rise or fall for certain, rather along a line than in one
    step, and still do. Of the slope only what is beyond two standard errors."""
    n = len(counts)
    if n < LINE_BINS:
        return None
    mean, slope, spread = _line(counts)
    around = sum((x - mean) ** 2 for x in counts)
    off_line = around - slope * slope * spread
    totals = list(accumulate(counts, initial=0))
    # From the two levels of a step, wherever it fits best.
    off_step = around - max(
        (totals[n] - totals[cut] - (n - cut) * mean) ** 2 * n / (cut * (n - cut)) for cut in range(1, n)
    )
    if off_line >= off_step:
        return None
    variance = (USUAL_BINS * USUAL_DISPERSION * mean + off_line) / (USUAL_BINS + n)
    sure = abs(slope) - 2.0 * math.sqrt(variance / spread)
    lately = math.copysign(1.0, slope) * _line(counts[n // 2 :])[1]
    if sure <= 0.0 or lately <= 0.0:
        return None
    end = mean + slope * (n - 1) / 2 - 2.0 * math.sqrt(variance / n)
    return end, math.copysign(min(sure, lately), slope)


def _line(counts: Sequence[int]) -> tuple[float, float, float]:
    """Mean, slope, and the sum of squares of places around their middle."""
    n = len(counts)
    middle, spread = (n - 1) / 2, n * (n * n - 1) / 12
    slope = sum((place - middle) * x for place, x in enumerate(counts)) / spread
    return sum(counts) / n, slope, spread
