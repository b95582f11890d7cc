"""Policies that spread requests without asking about targets: what engines and routers do today."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.scheduler.choice import Choice
from router.scheduler.policies.rolling import steady_hash
from router.scheduler.request import RouteRequest
from router.scheduler.view import InstanceView

FULL = "every instance that is large enough is full"


@dataclass(slots=True)
class RoundRobin:
    """One after the other."""

    name: str = "round-robin"
    _last: str = ""

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """The next one in the cycle that has room."""
        start = next((i + 1 for i, view in enumerate(views) if view.instance_id == self._last), 0)
        for view in [*views[start:], *views[:start]]:
            if view.holds(request):
                self._last = view.instance_id
                return Choice(view.instance_id, "its turn", {"instances": len(views)})
        return Choice(None, FULL, {"instances": len(views)})


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """Fewest tokens, prompt and output so far; of equals the one with fewer sequences.

    Tokens and not sequences, because one long prompt is as much work as many short ones.
    """

    name: str = "least-loaded"

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """See the class."""
        open_views = [view for view in views if view.holds(request)]
        if not open_views:
            return Choice(None, FULL, {"instances": len(views)})
        best = min(open_views, key=load)
        numbers = {"tokens": best.tokens, "sequences": best.sequences, "candidates": len(open_views)}
        return Choice(best.instance_id, "fewest tokens", numbers)


@dataclass(frozen=True, slots=True)
class RandomNext:
    """Any instance with room, by a hash of the request's id."""

    name: str = "random-next"

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """See the class."""
        open_views = [view for view in views if view.holds(request)]
        if not open_views:
            return Choice(None, FULL, {"instances": len(views)})
        chosen = open_views[steady_hash(request.request_id, 1) % len(open_views)]
        return Choice(chosen.instance_id, "drawn", {"candidates": len(open_views)})


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """The less loaded of two drawn by a hash of the request's id."""

    name: str = "power-of-two"

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """See the class."""
        open_views = [view for view in views if view.holds(request)]
        if not open_views:
            return Choice(None, FULL, {"instances": len(views)})
        first = steady_hash(request.request_id, 1) % len(open_views)
        # Another than the first, if there is one.
        step = 1 + steady_hash(request.request_id, 2) % max(1, len(open_views) - 1)
        second = (first + step) % len(open_views)
        best = min((open_views[first], open_views[second]), key=load)
        return Choice(best.instance_id, "less loaded of two", {"tokens": best.tokens})


def load(view: InstanceView) -> tuple[int, int, str]:
    """The lower, the sooner it is chosen."""
    return view.tokens, view.sequences, view.instance_id
