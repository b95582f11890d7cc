"""A macro instance: instances that cooperate under one routing policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from router.scheduler.choice import Choice, RoutingPolicy
from router.scheduler.lending import borrowing, lender_of
from router.scheduler.policies.catalog import FINDING
from router.scheduler.policies.moving import MovingPolicy
from router.scheduler.request import RouteRequest
from router.scheduler.view import InstanceView


class MacroInstance:
    """Instances in their cyclic order, and the policy that chooses among them.

    last_chosen: the instance that the last request went to, empty before the first. With rolling activation
    it is the one whose turn it is.
    """

    def __init__(self, macro_id: str, policy: RoutingPolicy, views: Iterable[InstanceView] = ()) -> None:
        self.macro_id = macro_id
        self.policy = policy
        self.last_chosen = ""
        self._views = {view.instance_id: view for view in views}

    @property
    def views(self) -> tuple[InstanceView, ...]:
        """All its instances, draining ones included."""
        return tuple(self._views.values())

    def __len__(self) -> int:
        return len(self._views)

    def __contains__(self, instance_id: str) -> bool:
        return instance_id in self._views

    def view(self, instance_id: str) -> InstanceView | None:
        """What is known of one of its instances."""
        return self._views.get(instance_id)

    def take(self, view: InstanceView) -> None:
        """An instance joins, at the end of the cycle. Its view comes along with all it knows."""
        self._views[view.instance_id] = view

    def give(self, instance_id: str) -> InstanceView:
        """An instance leaves for another macro instance, or for good. KeyError if it is not here."""
        return self._views.pop(instance_id)

    def route(self, request: RouteRequest, now: float) -> Choice:
        """Choose, and take note of what was sent."""
        choice = self.policy.choose(request, self.views, now)
        chosen, wanted = choice.instance_id, request
        if chosen is None:
            return choice
        if self.policy.name in FINDING:
            # As the policy has reckoned.
            wanted = borrowing(request, self._views[chosen], lender_of(request, self.views))
        if wanted.lender:
            numbers = {**choice.numbers, "lent_tokens": wanted.lent, "fetch_s": wanted.fetch_s}
            choice = replace(choice, numbers=numbers, lender=wanted.lender)
        self.send(wanted, chosen, now)
        return choice

    def send(self, request: RouteRequest, instance_id: str, now: float) -> None:
        """Take note that it goes there. KeyError if there is no such instance here."""
        view = self._views[instance_id]
        view.routed(request)
        self.last_chosen = instance_id
        if (moving := self.moving) is not None:
            moving.sent(request, view)

    def passes_on(self, request: RouteRequest, instance_id: str) -> bool:
        """Will it probably go on elsewhere when its prompt is done there?"""
        moving = self.moving
        return (
            moving is not None
            and not request.brought
            and moving.passes_on(self._views[instance_id], self.views)
        )

    @property
    def moving(self) -> MovingPolicy | None:
        """Its policy, if sequences go on elsewhere under it."""
        return self.policy if isinstance(self.policy, MovingPolicy) else None

    @property
    def load(self) -> float:
        """Tokens per instance that takes requests: what macro instances are compared by."""
        ready = [view for view in self._views.values() if view.ready]
        return sum(view.tokens for view in ready) / len(ready) if ready else float("inf")
