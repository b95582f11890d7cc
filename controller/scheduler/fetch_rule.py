"""The rule that weighs fetching KV blocks of another instance against computing what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from controller.scheduler.actions import Reason
from controller.scheduler.offload import compute_seconds
from tidepipe_common.circuit_breaker import CircuitBreakers
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.transfer import TransferCost, TransferCosts, quicker_fetched
from tidepipe_common.types.kv_transfer import KvFetched, KvHandle, is_near

LEAST_TIMEOUT_S, MOST_TIMEOUT_S = 5.0, 60.0
"""For a fetch: ten times what it should take, within these."""

WHY_FETCHED = {
    "auto": "fetching takes less time from all than computing",
    "always": "whatever can be fetched is",
}


@dataclass(frozen=True, slots=True)
class Fetching:
    """A fetch under way. source: where from (KvHandle.source). ahead: bytes that were to come before it.

    near: within the node. predicted_s: until it is here. rest: of what mostly is here already.
    ahead_of_it: its sequence is still elsewhere, and the blocks may still be computed: it is not counted as
        under way, and what becomes of it says nothing of the way. beside: bytes of such ones that were going
        ahead when it began.
    """

    source: str
    nbytes: int
    ahead: float
    began: float
    predicted_s: float
    ahead_of_it: bool = False
    near: bool = False
    rest: bool = False
    beside: float = 0.0


class FetchRule:
    """Of one instance; what comes to it comes on one of two ways (`transfers`), from sources each of which
    may be out of reach: a fetch that fails opens its source's circuit breaker.

    node: of this instance, see `node_of`.
    """

    def __init__(self, cost: StepCost | None, transfers: TransferCosts, mode: str = "auto") -> None:
        """cost: of steps; None: unknown. transfers: what fetches take.

        mode: auto fetches where computing would take more time, from it and from those who decode here;
            always: whatever can be; never: nothing.
        """
        self.transfers = transfers
        self.node = ""
        self.mode = mode
        self._cost = cost
        self._sources = CircuitBreakers()

    def transfer(self, handle: KvHandle) -> TransferCost:
        """What a fetch of its blocks takes."""
        return self.transfers.by(is_near(handle.node, self.node))

    def expected_s(self, handle: KvHandle, nbytes: int, now: float, *, rest: bool = False) -> float:
        """Until so many bytes of it would be here. rest: the most of it is."""
        transfer = self.transfer(handle)
        return (transfer.rest_seconds if rest else transfer.seconds)(nbytes, transfer.under_way(now))

    def against(
        self,
        handle: KvHandle,
        begin: int,
        tokens: int,
        nbytes: int,
        *,
        others: int,
        chunk: int,
        now: float,
        rest: bool = False,
    ) -> Reason | None:
        """Why so many tokens behind position `begin` should rather be computed; None: fetch their bytes.

        others: sequences that run here. chunk: prompt tokens of a step. rest: the most of it is here.
        """
        breaker = self._sources.of(handle.source)
        if breaker is not None and not breaker.lets(now):
            numbers = {"failures": breaker.failures, "again_in_s": max(0.0, breaker.until - now)}
            return Reason(f"fetches from {handle.source} failed", numbers)
        fetch_s = self.expected_s(handle, nbytes, now, rest=rest)
        compute_s = inf
        if self._cost is not None:
            compute_s = compute_seconds(self._cost, begin, tokens, chunk)
        if self.mode != "auto" or quicker_fetched(fetch_s, compute_s, others):
            return None
        numbers = {"fetch_s": fetch_s, "compute_s": compute_s, "others": others, "tokens": tokens}
        return Reason("quicker computed than fetched", numbers)

    def begin(
        self, handle: KvHandle, nbytes: int, now: float, *, ahead: bool = False, rest: bool = False
    ) -> Fetching:
        """So many bytes of it are fetched. ahead: of their sequence; rest: the most of it is here."""
        source, near = handle.source, is_near(handle.node, self.node)
        transfer = self.transfers.by(near)
        beside = transfer.going_ahead
        if ahead:
            transfer.going_ahead += nbytes
        under_way = transfer.under_way(now) if ahead else transfer.begin(nbytes, now)
        predicted = (transfer.rest_seconds if rest else transfer.seconds)(nbytes, under_way)
        if not ahead and (breaker := self._sources.of(source)) is not None:
            breaker.tried(now, timeout_s(predicted))
        return Fetching(source, nbytes, under_way, now, predicted, ahead, near, rest, beside)

    def ended(self, fetching: Fetching, news: KvFetched, now: float) -> Reason:
        """What was learned of that: what came, or why nothing did and for how long nothing is fetched from
        there."""
        numbers: dict[str, float] = {"bytes": news.nbytes, "seconds": news.seconds}
        transfer = self.transfers.by(fetching.near)
        if fetching.ahead_of_it:
            transfer.going_ahead -= fetching.nbytes
            return Reason(f"the blocks did not come: {news.error}" if news.error else "fetched", numbers)
        transfer.ended(fetching.nbytes, now)
        if not news.error:
            if fetching.rest:
                transfer.observe_rest(news.nbytes, fetching.ahead, news.seconds)
            else:
                transfer.observe(news.nbytes, fetching.ahead, news.seconds, fetching.beside)
            self._sources.worked(fetching.source)
            return Reason("fetched", numbers)
        if not news.gone:
            numbers["barred_s"] = self._sources.failed(fetching.source, fetching.began, now)
        return Reason(f"the blocks did not come: {news.error}", numbers)

    def barred(self, now: float) -> tuple[str, ...]:
        """Sources from which nothing is fetched for now."""
        return self._sources.open(now)


def timeout_s(predicted_s: float) -> float:
    """Of a fetch."""
    return min(MOST_TIMEOUT_S, max(LEAST_TIMEOUT_S, 10 * predicted_s))
