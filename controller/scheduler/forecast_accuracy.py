"""How right forecasts of KV memory were: told at the start of each decode phase, looked up at its end."""

from __future__ import annotations

import numpy as np

from controller.scheduler.forecast import KvForecast


class ForecastAccuracy:
    """Compares the tokens that were expected after a phase without admissions with those that are there."""

    def __init__(self) -> None:
        self.phases = 0
        self._errors = 0.0
        self._told: tuple[float, np.ndarray, np.ndarray] | None = None

    @property
    def mean_error(self) -> float | None:
        """Mean distance between expected and used, as a share of the memory; None before the first phase."""
        return self._errors / self.phases if self.phases else None

    def begin(self, forecast: KvForecast) -> None:
        """A decode phase begins."""
        self._told = (forecast.now, *forecast.profile())

    def end(self, forecast: KvForecast, used_tokens: int, capacity_tokens: int) -> None:
        """Prompts are admitted again, or all is done."""
        if self._told is None or not capacity_tokens:
            return
        began, times, tokens = self._told
        passed = forecast.now - began
        if passed > 0.0:
            # More than fits cannot be in use, whatever was expected.
            expected = min(float(np.interp(passed, times, tokens)), float(capacity_tokens))
            self._errors += abs(expected - used_tokens) / capacity_tokens
            self.phases += 1
        self._told = None
