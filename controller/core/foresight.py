"""How right forecasts of KV memory were: told at the start of each decode phase, seen until its end."""

from __future__ import annotations


class Foresight:
    """Compares the peak that was forecast for a phase without admissions with the one that came."""

    def __init__(self) -> None:
        self.phases = 0
        self._errors = 0.0
        self._forecast: float | None = None
        self._highest = 0

    @property
    def mean_error(self) -> float | None:
        """Mean distance between forecast and peak, as a share of the memory; None before the first phase."""
        return self._errors / self.phases if self.phases else None

    def begin(self, forecast_tokens: float) -> None:
        """A decode phase begins with this forecast peak."""
        self._forecast, self._highest = forecast_tokens, 0

    def note(self, used_tokens: int) -> None:
        """So much is in use now."""
        self._highest = max(self._highest, used_tokens)

    def end(self, capacity_tokens: int) -> None:
        """Prompts are admitted again, or all is done. A peak above the memory is one at its limit."""
        if self._forecast is not None and self._highest and capacity_tokens:
            expected = min(self._forecast, float(capacity_tokens))
            self._errors += abs(expected - self._highest) / capacity_tokens
            self.phases += 1
        self._forecast = None
