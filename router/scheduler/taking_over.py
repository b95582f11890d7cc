"""The choice of an instance for a request that brings its KV blocks along: only memory counts."""

from __future__ import annotations

from collections.abc import Iterable

from router.scheduler.choice import Choice
from router.scheduler.request import RouteRequest
from router.scheduler.view import InstanceView


def take_over(request: RouteRequest, views: Iterable[InstanceView]) -> Choice | None:
    """The instance that it wishes for, or the least loaded one, of those that have room and fetch from where
    it comes from. None: none does."""
    able = [
        view
        for view in views
        if view.holds(request) and view.fetches_from(request.giver) and view.kv_of(request) < view.kv_free
    ]
    if not able:
        return None
    wished = [view for view in able if view.instance_id == request.wish]
    # Where nothing but prompts is computed it is in the way.
    chosen = wished[0] if wished else min(able, key=lambda view: (view.role.share >= 1.0, view.tokens))
    numbers = {"brought": request.brought, "tokens": chosen.tokens, "kv_free": chosen.kv_free}
    why = "where it is wanted" if wished else "the least loaded that has room"
    return Choice(chosen.instance_id, f"it brings its KV blocks along: {why}", numbers)
