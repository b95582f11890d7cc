"""The way of a result through the controller: the one time of a step that no device's cost model has."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

DISPATCH_S = 0.0015
"""From a step's end at the last stage to the next plan at the first one: a report, a decision, a plan.

What is reckoned with before it was measured, and in virtual time unless another one is given. Between
processes on two cores of a Zen 4: 1.0 ms undisturbed, 1.5 to 1.9 in the median where two instances, their
router and the client share these cores.
"""
ENOUGH = 16
KEPT = 128
"""Steps of the last seconds: so many follow a machine that gets busy, and one pause is not seen in them."""
RECKONED_EVERY = 8
LEFT_OUT = 0.1
"""Of them, at either end: pauses of a process take a hundred times as long as a way."""


def dispatch_seconds(told_ms: float | None) -> float:
    """What a step costs beside computing, if somebody tells it; None: they do not."""
    return DISPATCH_S if told_ms is None else told_ms / 1000


class MeasuredDispatch:
    """What a step costs beside computing, on this machine: a mean over the last steps, without LEFT_OUT.

    Between the decision for a step and its result it is computed, on links, on its way, or waits for stages
    that are busy. Of those that did not wait, as the stages say, all that neither stages nor the cost model
    account for is the way. Where all steps wait the way is hidden, and costs nothing.
    """

    def __init__(self, default_s: float = DISPATCH_S) -> None:
        """default_s: before ENOUGH steps were measured."""
        self.seconds = default_s
        self.steps = 0
        """Observed so far, whose way was seen."""
        self._last: deque[float] = deque(maxlen=KEPT)

    def observe(
        self, passed_s: float, stage_s: Sequence[float], waits_s: Sequence[float], links_s: float
    ) -> None:
        """A step's result came so long after it was planned.

        stage_s: that each stage computed. waits_s: that each had waited for it; 0: it waited for the stage,
        or that is not known. links_s: of its activations from stage to stage, by the cost model.
        """
        if not waits_s or min(waits_s) <= 0.0:
            return
        self._last.append(max(0.0, passed_s - sum(stage_s) - links_s))
        self.steps += 1
        if self.measured and self.steps % RECKONED_EVERY == 0:
            ways = sorted(self._last)
            out = int(LEFT_OUT * len(ways))
            self.seconds = sum(ways[out : len(ways) - out]) / (len(ways) - 2 * out)

    @property
    def measured(self) -> int:
        """Steps by which `seconds` was measured here; 0: it is what was assumed."""
        return self.steps if self.steps >= ENOUGH else 0
