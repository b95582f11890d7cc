"""How many requests per second one instance bears within its targets: by the cost model that it plans with,
corrected by what is seen."""

from __future__ import annotations

from router.scheduler.constraints import KV_SHARE
from router.scheduler.demand import Sizes
from router.scheduler.prefill import PrefillTime
from router.scheduler.slo import SloTarget

PROMISED = 0.95
"""Share of the TPOT target that is reckoned with."""
LEARNING_S = 20.0
"""Of saturation after which what is seen counts for most."""
LEAST, MOST = 0.2, 5.0
"""Times the model."""
_HALVINGS = 10
_ROUNDS = 30


def modelled(prefill: PrefillTime, kv_tokens: int, sizes: Sizes, target: SloTarget) -> float:
    """Requests per second; 0 where not even one fits its target; infinite where steps cost nothing.

    With r requests per second, rounds of t seconds and outputs of o tokens, r o t sequences decode, and r p t
    prompt tokens ride on each round: t is what such a round takes. The most is borne when t comes to the
    target, or contexts fill the memory.
    """
    most_s = PROMISED * target.tpot_s

    def fits(rate: float) -> bool:
        # A longer round brings more to the next: if one of most_s takes no longer, rounds settle below it.
        round_s = most_s
        for _ in range(_ROUNDS):
            rows = rate * sizes.output * round_s
            context = rows * (sizes.prompt + sizes.output / 2)
            prompts = rate * round_s
            settled = prefill.mixed_round_s(rows + prompts * sizes.prompt, context, prompts * sizes.pairs)
            if settled > round_s:
                return False
            if context <= KV_SHARE * kv_tokens or not kv_tokens:
                return True
            if round_s - settled < 1e-3 * most_s:
                return False
            round_s = settled
        return False

    low, high = 0.0, 1.0
    while fits(high):
        low, high = high, 2 * high
        if high > 1e6:
            return float("inf")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


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
