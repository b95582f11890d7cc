"""The balance of steps that are in the pipeline together."""

from __future__ import annotations

from collections import deque

from tidepipe_common.types.plan import Phase


class StepBalance:
    """Of `stages` successive steps of one phase: the longest over their mean, less one; mean over the run."""

    def __init__(self, stages: int) -> None:
        self._window: deque[float] = deque(maxlen=stages)
        self._phase = Phase.IDLE
        self._sum = 0.0
        self._windows = 0

    def note(self, phase: Phase, seconds: float) -> None:
        """A step that takes a stage so long."""
        if phase is not self._phase:
            self._phase = phase
            self._window.clear()
        window = self._window
        window.append(seconds)
        if len(window) == window.maxlen:
            self._sum += max(window) * len(window) / max(sum(window), 1e-12) - 1.0
            self._windows += 1

    @property
    def mean(self) -> float:
        """0 if all steps are alike."""
        return self._sum / self._windows if self._windows else 0.0
