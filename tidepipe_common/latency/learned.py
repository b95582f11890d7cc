"""A step cost that is learned from times alone: for devices of which nobody has a profile."""

from __future__ import annotations

from tidepipe_common.latency.work import StepWork
from tidepipe_common.types.plan import Phase

GUESS_TOKEN_S = 0.5e-3
"""Before anything was measured: a small model on a CPU. Wrong elsewhere, for as long as one step takes."""


class LearnedCost:
    """Time of a step by its tokens: means over step sizes of a power of two, straight lines between them.

    Attention is part of them, so contexts are as they were lately. Exponentially weighted: `weight` 0.1
    forgets within about ten steps of a size. One measurement may change a mean by 4x at most.
    """

    def __init__(self, weight: float = 0.1) -> None:
        self._weight = weight
        self._means: dict[int, tuple[float, float]] = {}

    def observe(self, phase: Phase, work: StepWork, measured_s: float) -> None:
        """A stage took `measured_s` for this work."""
        if measured_s <= 0.0 or work.tokens < 1:
            return
        size = work.tokens.bit_length()
        before = self._means.get(size)
        if before is None:
            self._means[size] = float(work.tokens), measured_s
            return
        tokens, seconds = before
        bounded = min(max(measured_s, seconds / 4), seconds * 4)
        self._means[size] = (
            tokens + self._weight * (work.tokens - tokens),
            seconds + self._weight * (bounded - seconds),
        )

    def linear_s(self, tokens: int) -> float:
        """The whole step."""
        if tokens < 1:
            return 0.0
        points = sorted(self._means.values())
        if not points:
            return tokens * GUESS_TOKEN_S
        below = [point for point in points if point[0] <= tokens]
        above = [point for point in points if point[0] > tokens]
        if not above:
            size, seconds = below[-1]
            # Beyond the largest: in proportion, as large steps are bound by computing.
            return seconds * tokens / size
        if not below:
            return above[0][1]
        (low, low_s), (high, high_s) = below[-1], above[0]
        return max(low_s, low_s + (high_s - low_s) * (tokens - low) / (high - low))

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        """Zero: `linear_s` has it."""
        return 0.0

    def step_s(self, work: StepWork) -> float:
        """As `linear_s`."""
        return self.linear_s(work.tokens)

    def stage_s(self, work: StepWork, layers: int, *, last: bool) -> float:
        """As `linear_s`: what was timed is a stage as it is."""
        return self.linear_s(work.tokens)

    def transfer_s(self, tokens: int) -> float:
        """Zero: nobody measures it."""
        return 0.0
