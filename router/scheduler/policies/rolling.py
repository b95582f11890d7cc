"""Rolling activation (EcoServe, section on the macro-instance scheduler), and what it is measured against."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.scheduler.choice import Choice
from router.scheduler.lending import borrowing, lender_of
from router.scheduler.policies.constraints import Constraint, LatestResume, MeanSlack
from router.scheduler.request import RouteRequest
from router.scheduler.view import InstanceView


def steady_hash(text: str, salt: int) -> int:
    """A number that looks drawn at random and is the same in every run: the core has no randomness."""
    return zlib.crc32(text.encode(), salt)


@dataclass(slots=True)
class RollingActivation:
    """A request goes where the previous one went while the constraint holds, else to the next instance.

    So one instance after the other has its prefill window, while the others decode.
    window_s: an instance whose prefill window is longer hands over to the next one, though it could take
        more: a longer window makes steps no cheaper, but loads one instance after the other with more than
        its share of sequences. No limit in the paper.
    balanced: the next instance is the one with the fewest tokens, instead of the next in the cycle.
    shuffled: ablation: the next instance is a random one.
    finds: a request leaves the turn for an instance that holds more of its prompt if it is predicted to end
        earlier there, and the constraint holds there as well. The activation stays where it is.
    """

    constraint: Constraint = field(default_factory=LatestResume)
    name: str = "padg"
    window_s: float = float("inf")
    balanced: bool = False
    shuffled: bool = False
    finds: bool = False
    _active: str = ""

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """Waits if the constraint holds nowhere."""
        failed: Choice | None = None
        lender = lender_of(request, views) if self.finds else None
        for view in self._in_turn(request, views, now):
            if not view.holds(request):
                continue
            there = borrowing(request, view, lender)
            check = self.constraint.check(there, view, now)
            if not check.satisfied:
                failed = failed or Choice(None, f"{view.instance_id}: {check.reason}", check.numbers)
            elif found := self._found(request, views, view, view.done_s(there), now):
                return found
            else:
                self._active = view.instance_id
                return Choice(view.instance_id, check.reason, {**check.numbers, **_prefix(there, view)})
        if failed is None:
            return Choice(None, "no instance is ready and large enough", {"instances": len(views)})
        return failed

    def _found(
        self,
        request: RouteRequest,
        views: Sequence[InstanceView],
        turn: InstanceView,
        turn_s: float,
        now: float,
    ) -> Choice | None:
        """An instance where it would end earlier than at the one whose turn it is, for what is there."""
        if not (self.finds and request.prefix):
            return None
        cached = turn.cached_tokens(request)
        hits = [(view.done_s(request), view) for view in views if view.cached_tokens(request) > cached]
        for done_s, view in sorted(hits, key=lambda hit: (hit[0], hit[1].tokens, hit[1].instance_id)):
            if done_s >= turn_s:
                break
            if view.holds(request) and (check := self.constraint.check(request, view, now)).satisfied:
                numbers = {**check.numbers, **_prefix(request, view), "turn_s": turn_s}
                return Choice(view.instance_id, f"it ends earlier than in turn; {check.reason}", numbers)
        return None

    def _in_turn(
        self, request: RouteRequest, views: Sequence[InstanceView], now: float
    ) -> Sequence[InstanceView]:
        start = next((i for i, view in enumerate(views) if view.instance_id == self._active), 0)
        turn = [*views[start:], *views[:start]]
        if self.shuffled:
            turn[1:] = sorted(
                turn[1:], key=lambda view: steady_hash(request.request_id + view.instance_id, 1)
            )
        elif self.balanced:
            turn[1:] = sorted(turn[1:], key=lambda view: view.tokens)
        if turn and turn[0].facts.prefill.seconds(turn[0].left) >= self.window_s:
            turn.append(turn.pop(0))
        return turn


def _prefix(request: RouteRequest, view: InstanceView) -> dict[str, float]:
    """Where a request's beginning may be found: what of it was, and when it is predicted to end."""
    if not request.prefix:
        return {}
    return {"cached_tokens": view.cached_tokens(request), "predicted_s": view.done_s(request)}


@dataclass(slots=True)
class FixedInterval:
    """Ablation: the active instance changes with the clock; no constraint is asked.

    interval_s: how long each takes all new requests.
    """

    interval_s: float = 0.5
    name: str = "fixed-interval"

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """Waits only if no instance is ready, or none has room."""
        open_views = [view for view in views if view.holds(request)]
        if not open_views:
            return Choice(None, "no instance has room", {"instances": len(views)})
        turn = int(now / self.interval_s) % len(open_views)
        chosen = open_views[turn]
        return Choice(chosen.instance_id, "its interval", {"interval_s": self.interval_s, "turn": turn})


def published() -> RollingActivation:
    """The paper's router: rolling activation with Algorithm 1."""
    return RollingActivation(MeanSlack(), "padg-published")
