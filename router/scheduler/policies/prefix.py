"""Policies that look for a prompt's beginning: by what it saves all, and, to compare, by the hit alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.scheduler.choice import Choice
from router.scheduler.lending import borrowing, lender_of
from router.scheduler.policies.spread import FULL, LeastLoaded, load
from router.scheduler.request import RouteRequest
from router.scheduler.view import InstanceView


@dataclass(frozen=True, slots=True)
class LeastCost:
    """The least loaded instance, unless another one holds more of its prompt and it costs all together less
    time there: its own until its end, and what it takes from those who are there.

    They count, because a hit draws the next one: by a request's own end alone conversations gather where
    others are, and all their prompts fall into that instance's rounds. Where nothing is found it is
    LeastLoaded.

    What an instance does not hold it may fetch from one that does, where that is quicker than computing; its
    costs are then reckoned so.
    """

    name: str = "prefix"

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """See the class."""
        choice = LeastLoaded().choose(request, views, now)
        if not request.prefix or choice.instance_id is None:
            return choice
        least = next(view for view in views if view.instance_id == choice.instance_id)
        lender = lender_of(request, views)
        found = least.cached_tokens(request)
        hits = [view for view in views if view.cached_tokens(request) > found and view.holds(request)]
        best, reason, costs = least, choice.reason, {}
        if hits or lender is not None:
            there = {view.instance_id: borrowing(request, view, lender) for view in (least, *hits)}
            best_s, _, best = min(
                (view.cost_s(there[view.instance_id]), load(view), view) for view in (least, *hits)
            )
            request = there[best.instance_id]
            costs = {"cost_s": best_s, "least_loaded_cost_s": least.cost_s(there[least.instance_id])}
            reason = "what is found there saves most" if best is not least else "hits elsewhere do not pay"
            if request.lender:
                reason = "what is found elsewhere is fetched"
        numbers = {
            **choice.numbers,
            "tokens": best.tokens,
            "sequences": best.sequences,
            "cached_tokens": best.cached_tokens(request),
            "predicted_s": best.done_s(request),
            **costs,
        }
        return Choice(best.instance_id, reason, numbers)


@dataclass(frozen=True, slots=True)
class MostHits:
    """Where most of its prompt is found, however many are there already; of equals the least loaded."""

    name: str = "most-hits"

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """See the class."""
        finds = [(view.cached_tokens(request), view) for view in views if view.holds(request)]
        if not finds:
            return Choice(None, FULL, {"instances": len(views)})
        cached, best = min(finds, key=lambda find: (-find[0], find[1].tokens, find[1].instance_id))
        numbers = {
            "cached_tokens": cached,
            "predicted_s": best.done_s(request),
            "tokens": best.tokens,
            "candidates": len(finds),
        }
        return Choice(best.instance_id, "most of its prompt is found", numbers)
