"""Counters of one scheduler, for status, metrics and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from controller.scheduler.actions import Reason
from controller.scheduler.block_store import ReuseStats
from controller.scheduler.forecast import KvForecast
from controller.scheduler.offload import OffloadStats
from tidepipe_common.types.plan import Phase


class ForecastAccuracy:
    """How right forecasts of KV memory were: compares the tokens that were expected after a phase without
    admissions, told at its begin, with those that are there at its end."""

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


@dataclass(slots=True)
class SchedulerStats:
    """All since start. Tokens of steps include recomputed ones; output_tokens are those delivered."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    preemptions: int = 0
    steals: int = 0
    phase_switches: int = 0
    reuse: ReuseStats = field(default_factory=ReuseStats)
    offload: OffloadStats = field(default_factory=OffloadStats)
    forecast_accuracy: ForecastAccuracy = field(default_factory=ForecastAccuracy)
    last_switch: Reason = field(default_factory=lambda: Reason("started"))

    def count_step(self, prefill_tokens: int, decode_tokens: int) -> None:
        """A step came back."""
        self.prefill_tokens += prefill_tokens
        self.decode_tokens += decode_tokens

    def count_switch(self, before: Phase, after: Phase, reason: Reason) -> None:
        """Prefill <-> decode is a switch of phases; going idle or waking up is not."""
        self.last_switch = reason
        if Phase.IDLE not in (before, after):
            self.phase_switches += 1
