"""The expected output of a sequence, in tokens still to come: by predictions, and by what was seen here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from controller.scheduler.sequence import Sequence

_Z90 = math.log(9.0)
"""log-odds of the 90th percentile of a logistic distribution."""


@dataclass(frozen=True, slots=True)
class LengthBelief:
    """Log-logistic distribution of an output's length: P(longer than x) = 1 / (1 + (x / median)^shape).

    It fits a median and a 90th percentile, has the long tail that outputs have, and needs no special
    function. An infinite shape is certainty.

    origin: tokens that the output had when this was said of it: of the rest, x - origin, it is said.
    """

    median: float
    shape: float
    origin: int = 0

    @classmethod
    def from_quantiles(cls, p50: float, p90: float, at: int = 0) -> LengthBelief:
        """From the predictor's answer, tokens of the whole output; at: those that it had."""
        median = max(p50 - at, 1.0)
        spread = math.log(max(p90 - at, median) / median)
        return cls(median, _Z90 / spread if spread > 1e-3 else math.inf, at)

    def remaining(self, tokens: int, share: float = 0.5) -> float:
        """Further tokens that `share` of the outputs with this many reach, of those that go on: their median.

        S(x) / S(g) = q gives x = median ((1 - q) / q + (g / median)^shape / q)^(1/shape). Whoever outlived
        certainty is expected to have half as much again: long outputs tend to stay long.
        """
        tokens = max(0, tokens - self.origin)
        if math.isinf(self.shape):
            return self.median - tokens if tokens < self.median else max(0.5 * tokens, 1.0)
        # In logarithms: a sharp belief that is far outlived would overflow.
        ended = math.log((1.0 - share) / share)
        aged = self.shape * math.log(tokens / self.median) - math.log(share) if tokens > 0 else -math.inf
        high, low = max(ended, aged), min(ended, aged)
        grown = high + math.log1p(math.exp(low - high))
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
        self._ended: deque[int] = deque()
        # How many of them have each length: an estimate costs as much as there are lengths, not answers.
        self._counts = np.zeros(1024, dtype=np.int64)
        self._longest = 0
        self._next = self.LEAST
        self._count = 0

    def note(self, tokens: int, running: Iterable[int]) -> None:
        """An output ended by itself; `running`: tokens so far of those that go on."""
        self._remember(tokens)
        self._count += 1
        if self._count >= self._next:
            censored = [*running]
            self._next = self._count + max(self.EVERY, (len(censored) + len(self._ended)) // 16)
            self.belief = self._estimate(censored)

    def _remember(self, tokens: int) -> None:
        self._make_room(tokens)
        self._ended.append(tokens)
        self._counts[tokens] += 1
        self._longest = max(self._longest, tokens)
        if len(self._ended) > self.WINDOW:
            self._counts[self._ended.popleft()] -= 1

    def _make_room(self, tokens: int) -> None:
        if tokens >= len(self._counts):
            self._counts = np.pad(self._counts, (0, 2 * tokens - len(self._counts)))

    def tokens_per_round(self, prompt_tokens: float, capacity_tokens: int) -> float:
        """Tokens, prompts included, that are computed per decode step when memory is full; 0: not known yet.

        A sequence computes p + o tokens and occupies o (p + o / 2) token-steps of memory.
        """
        if self.belief is None:
            return 0.0
        occupied = self._mean * prompt_tokens + self._mean_square / 2
        return capacity_tokens * (prompt_tokens + self._mean) / max(occupied, 1.0)

    def _estimate(self, censored: list[int]) -> LengthBelief:
        longest = max(max(censored, default=0), self._longest)
        self._make_room(longest)
        ended = self._counts[: longest + 1]
        going = np.bincount(np.array(censored, dtype=np.int64), minlength=longest + 1)
        lengths = np.flatnonzero(ended + going)
        ended, going = ended[lengths], going[lengths]
        # Of equally long ones those that ended did so before the others were seen to go on.
        at_risk = np.cumsum((ended + going)[::-1])[::-1]
        survival = np.cumprod(1.0 - ended / at_risk)
        # Those that outlive all others: half as long again, as for quantiles.
        beyond = 1.5 * float(lengths[-1])
        mass = -np.diff(survival, prepend=1.0, append=0.0)
        ends = np.append(lengths, beyond)
        self._mean, self._mean_square = float(mass @ ends), float(mass @ (ends * ends))
        quantiles = []
        for left in (0.5, 0.1):
            first = int(np.count_nonzero(survival > left))
            quantiles.append(float(lengths[first]) if first < len(lengths) else beyond)
        return LengthBelief.from_quantiles(quantiles[0], max(quantiles[1], 1.05 * quantiles[0]))


def belief_of(sequence: Sequence, seen: LengthBelief | None) -> LengthBelief:
    """What is believed of a sequence: its prediction, else what was seen here, else all that is allowed."""
    if sequence.predicted_p50 is not None and sequence.predicted_p90 is not None:
        return LengthBelief.from_quantiles(
            sequence.predicted_p50, sequence.predicted_p90, sequence.predicted_at
        )
    if seen is not None:
        return seen
    return LengthBelief(float(sequence.max_tokens), math.inf)


def expected_answer(seen: LengthBelief | None, predicted: Many[float]) -> int:
    """Tokens that an answer is expected to have where these outputs were seen to end, whatever it answers;
    before there are enough, as of those that are there and were predicted. 0: nothing is known."""
    if seen is not None:
        return int(seen.median)
    return int(sum(predicted) / len(predicted)) if predicted else 0


def expected_output(sequence: Sequence, seen: LengthBelief | None) -> float:
    """Output tokens that a sequence is expected to have in the end, the ones it has included."""
    generated = len(sequence.output)
    return min(generated + belief_of(sequence, seen).remaining(generated), float(sequence.max_tokens))
