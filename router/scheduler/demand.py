"""How many requests come, and how many will have come to be asked for when an instance that is asked for now
serves: arrivals by the second, their level since the last change, and their trend."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from router.scheduler.request import RouteRequest
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
MEMORY = 200.0
"""Requests over which sizes are averaged."""
ANSWERS_S = 60.0
"""Over which the length of answers is averaged."""
LEAST_LOOKS, LEAST_ENDS = 20, 5.0
"""Before so many seconds and ends few answers can have ended."""
FRESH_S = 1.0
"""A request that is older when it comes has been here before."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a request, on average, tokens: of its prompt what is computed, pairs of its attention, output."""

    prompt: float
    pairs: float
    output: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """Requests per second: now, and the growth of that per second (0 unless it is beyond doubt)."""

    rate: float
    growth: float

    def ahead(self, seconds: float) -> float:
        """In so many seconds."""
        return self.rate + max(0.0, self.growth) * seconds


class Demand:
    """Hears of arrivals and ends. Background requests do not count: nobody waits for them."""

    def __init__(self) -> None:
        self._bins: deque[int] = deque(maxlen=HISTORY)
        self._open: float | None = None
        self._count = 0
        self.fresh = False
        """Has a second passed since the last outlook?"""
        self._since = 0
        self._dispersion = USUAL_DISPERSION
        self._prompt = _Mean()
        self._pairs = _Mean()
        self._answers = _Answers()
        self._expected_output = _Mean()
        self._found = _Mean()

    def arrived(self, request: RouteRequest, now: float) -> None:
        """Somebody asks, whether it is served or refused."""
        if request.background or request.brought or now - request.arrived > FRESH_S:
            return
        self.pass_time(now)
        self._count += 1
        self._prompt.add(request.prompt_tokens)
        self._pairs.add(chunk_pairs(0, request.prompt_tokens))
        self._expected_output.add(request.foreseen)

    def sent(self, prompt_tokens: int, found: int) -> None:
        """To an instance, where so many tokens of the prompt were computed before."""
        self._found.add(found / max(1, prompt_tokens))
        self._answers.began(prompt_tokens)

    def ended(self, prompt_tokens: int, output_tokens: int) -> None:
        """An answer is complete."""
        self._answers.ended(prompt_tokens, output_tokens)

    def held(self, tokens: int) -> None:
        """Prompt and output so far of all that instances have, once a second."""
        self._answers.look(tokens)

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
        output = self._answers.mean or self._expected_output.mean or 1.0
        return Sizes(self._prompt.mean * left, self._pairs.mean * left, max(1.0, output))

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


class _Mean:
    """Of the last MEMORY values, about."""

    def __init__(self) -> None:
        self.mean: float | None = None
        self._weight = 0.0

    def add(self, value: float) -> None:
        self._weight = min(self._weight + 1.0, MEMORY)
        self.mean = value if self.mean is None else self.mean + (value - self.mean) / self._weight


class _Answers:
    """How long answers are: tokens that were produced for each answer that ended.

    The mean of those that have ended would be short for minutes after every rise: the short ones end first.
    """

    def __init__(self) -> None:
        self._ended = _Mean()
        self._held: int | None = None
        self._moved = 0
        self._produced = 0.0
        self._ends = 0.0
        self._new_ends = 0
        self._looks = 0

    def began(self, prompt_tokens: int) -> None:
        self._moved -= prompt_tokens

    def ended(self, prompt_tokens: int, output_tokens: int) -> None:
        self._ended.add(output_tokens)
        self._moved += prompt_tokens + output_tokens
        self._new_ends += 1

    def look(self, held: int) -> None:
        """What is held grows by what is produced, and by what comes and goes."""
        self._looks += 1
        if self._held is not None:
            kept = 1.0 - 1.0 / ANSWERS_S
            produced = max(0, held - self._held + self._moved)
            self._produced = kept * self._produced + produced
            self._ends = kept * self._ends + self._new_ends
        self._held, self._moved, self._new_ends = held, 0, 0

    @property
    def mean(self) -> float | None:
        """Cancelled answers and lost instances take tokens along: never less than those that ended had."""
        if self._ended.mean is None or self._looks < LEAST_LOOKS or self._ends < LEAST_ENDS:
            return None
        return max(self._ended.mean, self._produced / self._ends)


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
