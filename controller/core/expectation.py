"""How many more output tokens a sequence is expected to have: predictions, and what was seen here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from controller.core.sequence import Sequence

_Z90 = math.log(9.0)
"""log-odds of the 90th percentile of a logistic distribution."""


@dataclass(frozen=True, slots=True)
class LengthBelief:
    """Log-logistic distribution of an output's length: P(longer than x) = 1 / (1 + (x / median)^shape).

    It fits a median and a 90th percentile, has the long tail that outputs have, and needs no special
    function. An infinite shape is certainty.
    """

    median: float
    shape: float

    @classmethod
    def from_quantiles(cls, p50: float, p90: float) -> LengthBelief:
        """From the predictor's answer, tokens."""
        median = max(p50, 1.0)
        spread = math.log(max(p90, median) / median)
        return cls(median, _Z90 / spread if spread > 1e-3 else math.inf)

    def remaining(self, tokens: int) -> float:
        """Median of the further tokens of an output that has this many and goes on.

        S(x) / S(g) = 1/2 gives x = median (1 + 2 (g / median)^shape)^(1/shape). Whoever outlived certainty
        is expected to have half as much again: long outputs tend to stay long.
        """
        if math.isinf(self.shape):
            return self.median - tokens if tokens < self.median else max(0.5 * tokens, 1.0)
        if tokens <= 0:
            return max(self.median, 1.0)
        # In logarithms: a sharp belief that is far outlived would overflow.
        aged = math.log(2.0) + self.shape * math.log(tokens / self.median)
        grown = aged if aged > 30.0 else math.log1p(math.exp(aged))
        return max(self.median * math.exp(grown / self.shape) - tokens, 1.0)


class SeenLengths:
    """Lengths of outputs that ended here: the belief about sequences that nobody predicted.

    Outputs that still run are part of the account: of those that started together the short ones end first,
    and a plain mean of the ended ones would be far too short at the start of a batch (Kaplan-Meier estimate).
    """

    LEAST = 32
    EVERY = 64
    WINDOW = 8192

    def __init__(self) -> None:
        self.belief: LengthBelief | None = None
        self._mean = self._mean_square = 0.0
        self._ended: deque[int] = deque(maxlen=self.WINDOW)
        self._next = self.LEAST
        self._count = 0

    def note(self, tokens: int, running: Iterable[Sequence]) -> None:
        """An output ended by itself; `running`: those that go on."""
        self._ended.append(tokens)
        self._count += 1
        if self._count >= self._next:
            censored = [len(sequence.output) for sequence in running]
            self._next = self._count + max(self.EVERY, (len(censored) + len(self._ended)) // 16)
            self.belief = self._estimate(censored)

    def tokens_per_round(self, prompt_tokens: float, capacity_tokens: int) -> float:
        """Tokens, prompts included, that are computed per decode step when memory is full; 0: not known yet.

        A sequence computes p + o tokens and occupies o (p + o / 2) token-steps of memory.
        """
        if self.belief is None:
            return 0.0
        occupied = self._mean * prompt_tokens + self._mean_square / 2
        return capacity_tokens * (prompt_tokens + self._mean) / max(occupied, 1.0)

    def _estimate(self, censored: list[int]) -> LengthBelief:
        # Twice the length, odd if it goes on: sorted, with those that ended first where lengths are equal.
        codes = 2 * np.array([*self._ended, *censored], dtype=np.int64)
        codes[len(self._ended) :] += 1
        codes.sort()
        at_risk = np.arange(len(codes), 0, -1)
        survival = np.cumprod(np.where(codes % 2 == 0, 1.0 - 1.0 / at_risk, 1.0))
        # Those that outlive all others: half as long again, as for quantiles.
        ends = np.append(codes // 2, 1.5 * (codes[-1] // 2))
        mass = -np.diff(survival, prepend=1.0, append=0.0)
        self._mean, self._mean_square = float(mass @ ends), float(mass @ (ends * ends))
        quantiles = []
        for left in (0.5, 0.1):
            first = int(np.count_nonzero(survival > left))
            longest = float(codes[min(first, len(codes) - 1)] // 2)
            quantiles.append(longest if first < len(codes) else 1.5 * longest)
        return LengthBelief.from_quantiles(quantiles[0], max(quantiles[1], 1.05 * quantiles[0]))


def belief_of(sequence: Sequence, seen: LengthBelief | None) -> LengthBelief:
    """What is believed of a sequence: its prediction, else what was seen here, else all that is allowed."""
    if sequence.predicted_p50 is not None and sequence.predicted_p90 is not None:
        return LengthBelief.from_quantiles(sequence.predicted_p50, sequence.predicted_p90)
    if seen is not None:
        return seen
    return LengthBelief(float(sequence.max_tokens), math.inf)
