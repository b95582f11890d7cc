"""Rolling activation (EcoServe, section on the macro-instance scheduler), and what it is measured against."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.scheduler.choice import Choice
from router.scheduler.constraints import Constraint, LatestResume, MeanSlack
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
    """

    constraint: Constraint = field(default_factory=LatestResume)
    name: str = "padg"
    window_s: float = float("inf")
    balanced: bool = False
    shuffled: bool = False
    _active: str = ""

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """Waits if the constraint holds nowhere."""
        failed: Choice | None = None
        for view in self._in_turn(request, views, now):
            if not view.holds(request):
                continue
            check = self.constraint.check(request, view, now)
            if check.satisfied:
                self._active = view.instance_id
                return Choice(view.instance_id, check.reason, check.numbers)
            failed = failed or Choice(None, f"{view.instance_id}: {check.reason}", check.numbers)
        if failed is None:
            return Choice(None, "no instance is ready and large enough", {"instances": len(views)})
        return failed

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
