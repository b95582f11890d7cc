"""What a step took at each stage, from the times at which it was given away and came back."""

from __future__ import annotations


class StepClock:
    """Steps come back in the order in which they went. Pure.

    A step of t seconds at each of S stages comes back S t after it went, or t after the one before it,
    whichever is later; so t is the smaller one of what the two say.
    """

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._before: float | None = None

    def returned(self, went: float, now: float) -> float:
        """Seconds at each stage of the step that went at `went` and is back now."""
        seconds = (now - went) / self._stages
        if self._before is not None and self._before > went:
            seconds = min(seconds, now - self._before)
        self._before = now
        return max(seconds, 0.0)
