"""How many requests per second one instance bears within its targets: by the cost model that it plans with,
corrected by what is seen."""

from __future__ import annotations

from router.scheduler.prefill import PrefillTime
from router.scheduler.slo import SloTarget
from router.scheduler.steady_state import EVENLY, LASTING, Load, Sizes, SteadyState, highest

PRECISION = 0.002
LEARNING_S = 20.0
"""Of saturation after which what is seen counts for most."""
LEAST, MOST = 0.2, 5.0
"""Times the model."""


def modelled(prefill: PrefillTime, kv_tokens: int, sizes: Sizes, target: SloTarget) -> float:
    """Requests per second; 0 where not even one fits its target; infinite where steps cost nothing."""
    state = SteadyState(prefill, kv_tokens, sizes)

    def fits(rate: float) -> bool:
        return not state.obstacle(Load(rate, rate), EVENLY, target, LASTING)

    return highest(fits, PRECISION)


class Bearing:
    """The factor between what instances bear and what the model says they do.

    What they have borne within targets is proven. While they are saturated, what they do is all they can.
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def proven(self, ratio: float) -> None:
        """So many times the model's requests per second are served within targets."""
        self.factor = min(MOST, max(self.factor, ratio))

    def saturated(self, ratio: float, seconds: float) -> None:
        """Requests have waited for so long while so many times the model's were served."""
        if ratio < self.factor:
            step = min(1.0, seconds / LEARNING_S)
            self.factor = max(LEAST, self.factor + step * (ratio - self.factor))
