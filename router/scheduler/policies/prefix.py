"""Policies that look for a prompt's beginning: by predicted time, and, to compare, by the hit alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.scheduler.choice import Choice
from router.scheduler.request import RouteRequest
from router.scheduler.view import InstanceView

_FULL = "every instance that is large enough is full"


@dataclass(frozen=True, slots=True)
class EarliestEnd:
    """Where it is predicted to end first: what waits there, what is not found of its prompt, and decoding
    beside the others; of equals the one with fewer tokens. No instance fills up because it was found once:
    who waits there makes it late.
    """

    name: str = "prefix"

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """See the class."""
        ends = [(view.done_s(request), view) for view in views if view.holds(request)]
        if not ends:
            return Choice(None, _FULL, {"instances": len(views)})
        done_s, best = min(ends, key=lambda end: (end[0], end[1].tokens, end[1].instance_id))
        numbers = {
            "predicted_s": done_s,
            "prompt_s": best.prompt_done_s(request),
            "cached_tokens": best.cached_tokens(request),
            "candidates": len(ends),
        }
        return Choice(best.instance_id, "it ends first", numbers)


@dataclass(frozen=True, slots=True)
class MostHits:
    """Where most of its prompt is found, however many are there already; of equals the least loaded."""

    name: str = "most-hits"

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """See the class."""
        finds = [(view.cached_tokens(request), view) for view in views if view.holds(request)]
        if not finds:
            return Choice(None, _FULL, {"instances": len(views)})
        cached, best = min(finds, key=lambda find: (-find[0], find[1].tokens, find[1].instance_id))
        numbers = {
            "cached_tokens": cached,
            "predicted_s": best.done_s(request),
            "tokens": best.tokens,
            "candidates": len(finds),
        }
        return Choice(best.instance_id, "most of its prompt is found", numbers)
