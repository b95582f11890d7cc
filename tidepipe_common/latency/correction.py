"""A cost model that learns from the stage times that results carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import StepWork
from tidepipe_common.types.plan import Phase


class LearningCost(StepCost, Protocol):
    """A cost that gets better with every step that was timed."""

    def observe(self, phase: Phase, work: StepWork, measured_s: float) -> None:
        """A stage took `measured_s` for this work."""
        ...


class CorrectedCost:
    """Another model's times, multiplied by what was measured over what was predicted, per phase.

    The factor is an exponentially weighted mean. `weight` 0.05 forgets within about 20 steps, so that a
    device that slows down (clocks, neighbours) is followed within seconds. One measurement may change the
    factor by 4x at most: a pause of the process is not a property of the device.
    """

    def __init__(
        self, base: StepCost, weight: float = 0.05, factors: Mapping[Phase, float] | None = None
    ) -> None:
        """factors: to begin with."""
        self._base = base
        self._weight = weight
        self.factors: dict[Phase, float] = dict(factors or {})
        self._overall = self._mean()

    def observe(self, phase: Phase, work: StepWork, measured_s: float) -> None:
        """A stage took `measured_s` for this work."""
        predicted = self._base.step_s(work)
        if measured_s <= 0.0 or predicted <= 0.0:
            return
        ratio = measured_s / predicted
        before = self.factors.get(phase)
        if before is None:
            self.factors[phase] = ratio
        else:
            bounded = min(max(ratio, before / 4), before * 4)
            self.factors[phase] = before + self._weight * (bounded - before)
        self._overall = self._mean()

    def _mean(self) -> float:
        return sum(self.factors.values()) / len(self.factors) if self.factors else 1.0

    def factor(self, phase: Phase) -> float:
        """Measured over predicted; of all phases together for one that was not seen yet."""
        return self.factors.get(phase, self._overall)

    def linear_s(self, tokens: int) -> float:
        """Matrix products, corrected by the mean factor."""
        return self._base.linear_s(tokens) * self._overall

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        """Attention, corrected: prompts by prefill's factor, the cache by decode's."""
        factor = self.factor(Phase.PREFILL if pairs else Phase.DECODE)
        return self._base.attention_s(kv_tokens, pairs) * factor

    def step_s(self, work: StepWork) -> float:
        """One step at one stage."""
        factor = self.factor(Phase.PREFILL if work.pairs else Phase.DECODE)
        return self._base.step_s(work) * factor

    def stage_s(self, work: StepWork, layers: int, *, last: bool) -> float:
        """One step at a stage of this size, corrected likewise."""
        factor = self.factor(Phase.PREFILL if work.pairs else Phase.DECODE)
        return self._base.stage_s(work, layers, last=last) * factor

    def transfer_s(self, tokens: int) -> float:
        """As the base model says."""
        return self._base.transfer_s(tokens)
