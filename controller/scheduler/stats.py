"""Counters of one scheduler, for status, metrics and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.scheduler.actions import Reason
from controller.scheduler.forecast_accuracy import ForecastAccuracy
from tidepipe_common.types.plan import Phase


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
