"""Whether KV blocks of another instance are fetched, or what is in them is computed."""

from __future__ import annotations

from math import inf

from controller.scheduler.actions import Reason
from controller.scheduler.offload import compute_seconds
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.transfer import TransferCost, quicker_fetched

LEAST_TIMEOUT_S, MOST_TIMEOUT_S = 5.0, 60.0
"""For a fetch: ten times what it should take, within these."""

WHY_FETCHED = {
    "auto": "fetching takes less time from all than computing",
    "always": "whatever can be fetched is",
}


class FetchRule:
    """Of one instance; all that comes to it comes on one way (`transfer`)."""

    def __init__(self, cost: StepCost | None, transfer: TransferCost, mode: str = "auto") -> None:
        """cost: of steps; None: unknown. transfer: what a fetch takes.

        mode: auto fetches where computing would take more time, from it and from those who decode here;
            always: whatever can be; never: nothing.
        """
        self.transfer = transfer
        self.mode = mode
        self._cost = cost

    def against(self, begin: int, tokens: int, nbytes: int, *, others: int, chunk: int) -> Reason | None:
        """Why so many tokens behind position `begin` should rather be computed; None: fetch their bytes.

        others: sequences that run here. chunk: prompt tokens of a step.
        """
        fetch_s = self.transfer.seconds(nbytes, self.transfer.under_way)
        compute_s = inf
        if self._cost is not None:
            compute_s = compute_seconds(self._cost, begin, tokens, chunk)
        if self.mode != "auto" or quicker_fetched(fetch_s, compute_s, others):
            return None
        numbers = {"fetch_s": fetch_s, "compute_s": compute_s, "others": others, "tokens": tokens}
        return Reason("quicker computed than fetched", numbers)


def timeout_s(predicted_s: float) -> float:
    """Of a fetch."""
    return min(MOST_TIMEOUT_S, max(LEAST_TIMEOUT_S, 10 * predicted_s))
