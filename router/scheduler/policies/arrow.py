"""Arrow (arXiv 2505.11916): prompts and decoding apart on instances that change sides at once, as the load
asks for. A baseline.

Taken from the paper: instances without state, for which a side is a label (section 5.2); costs of a request
at an instance as pairs of what is there of the other kind and of its own, GetCost (5.3); Algorithm 1: the
cheapest instance that meets the target, else one changes sides, decode to prefill only while decoding has
little to do, else the cheapest of all; Algorithm 2: a monitor that gives instances to decoding when its load,
token intervals over the TPOT target, stays above a threshold, or when prefill has nothing to do; Algorithm 3:
who changes sides is the one that is still half on the other, or has least to do; a side is never emptied, and
prefill instances go to decoding only so often (5.5).

Simplified: token intervals are predicted by the instances' cost models, which measured steps correct, instead
of measured here; what is left over on an instance that changed sides counts in whole steps. Added: a sequence
stays where no instance has room, or whose blocks would come too late; and prefill that has little to do gives
an instance away only if that would not ask for it back. Blocks go ahead while prompts are computed, and of
instances within the node and beyond it that is taken to which going costs less.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.scheduler.choice import Choice
from router.scheduler.policies.moving import MovingPolicy, prompt_done_s, rows_of, token_s
from router.scheduler.policies.spread import FULL
from router.scheduler.request import RouteRequest
from router.scheduler.roles import Role
from router.scheduler.slo import SloTarget
from router.scheduler.view import InstanceView

PREFILL, DECODE = 1.0, 0.0
"""The two sides, as shares of prefill."""
HIGH = 1.0
"""Load of decoding from which on it gets one more instance: token intervals over the target."""
LOW = 0.5
"""Load below which a side has little to do."""
LOOK_S = 1.0
"""Between two looks of the monitor."""
SUSTAINED = 3
"""Looks in a row at which the load must be too high."""
COOL_S = 10.0
"""Between two instances that go from prefill to decoding."""


class Arrow(MovingPolicy):
    """See the module."""

    name = "arrow"

    def __init__(self, prefill: int = 0, low: float = LOW, high: float = HIGH) -> None:
        """prefill: instances that begin with prompts; 0: half of them. See LOW and HIGH."""
        super().__init__()
        self._prefill, self._low, self._high = prefill, low, high
        self._sides: dict[str, Role] = {}
        self._told: dict[str, float] = {}
        self._looked = -LOOK_S
        self._too_high = 0
        self._cooled = COOL_S
        self._slo: SloTarget | None = None

    # -- sides ----------------------------------------------------------------------------------------

    def _label(self, views: Sequence[InstanceView]) -> None:
        """Those that are new begin on the side that lacks one."""
        for view in sorted(views, key=lambda view: view.instance_id):
            if view.instance_id not in self._sides:
                there = [other for other in views if other.instance_id in self._sides]
                have = sum(self._sides[other.instance_id].share == PREFILL for other in there)
                want = self._prefill or max(1, len(views) // 2)
                share = PREFILL if have < min(want, len(views) - 1) else DECODE
                self._sides[view.instance_id] = Role(share, "to begin with", {"prefill": want})
            view.role = self._sides[view.instance_id]
        names = {view.instance_id for view in views}
        self._sides = {name: role for name, role in self._sides.items() if name in names}

    def _side(self, views: Sequence[InstanceView], share: float) -> list[InstanceView]:
        return [view for view in views if view.ready and view.role.share == share]

    def _flip(self, views: Sequence[InstanceView], share: float, why: str, now: float) -> InstanceView | None:
        """Algorithm 3: one comes over to that side; None: nobody can."""
        others = self._side(views, DECODE if share == PREFILL else PREFILL)
        if len(others) < 2 or (share == DECODE and now < self._cooled):
            return None
        chosen = min(others, key=lambda view: (not self._left_over(view), self._own(view), view.instance_id))
        if share == DECODE:
            self._cooled = now + COOL_S
        numbers = {"prefill_load": self._prefill_load(views), "decode_load": self._decode_load(views)}
        chosen.role = self._sides[chosen.instance_id] = Role(share, why, numbers)
        return chosen

    @staticmethod
    def _own(view: InstanceView) -> float:
        """What it has to do on its side: seconds of prompts, or tokens that decode."""
        if view.role.share == PREFILL:
            return view.facts.prefill.seconds(view.left)
        return max(0, view.tokens - view.left.tokens)

    def _left_over(self, view: InstanceView) -> int:
        """What it still has of the other side, in steps."""
        tokens = self.decoding_tokens(view) if view.role.share == PREFILL else view.left.tokens
        return tokens // view.facts.prefill.step_tokens

    # -- loads: section 5.5 -----------------------------------------------------------------------------

    def _prefill_load(self, views: Sequence[InstanceView]) -> float:
        side = self._side(views, PREFILL)
        if self._slo is None or not side:
            return 0.0
        return sum(view.facts.prefill.seconds(view.left) for view in side) / len(side) / self._slo.ttft_s

    def _decode_load(self, views: Sequence[InstanceView]) -> float:
        side = self._side(views, DECODE)
        if self._slo is None or not side:
            return 0.0
        busy = [view for view in side if view.sequences]
        spent = sum(token_s(view, rows_of(view), self.decoding_tokens(view)) for view in busy)
        return spent / len(side) / self._slo.tpot_s

    # -- where prompts go, and where they go on: Algorithm 1 --------------------------------------------

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """The prefill instance that has it done in time; if none has, one more of them; else the soonest."""
        self._label(views)
        self._slo = request.slo
        able = [view for view in views if view.holds(request)]
        if not able:
            return Choice(None, FULL, {"instances": len(views)})

        def cost(view: InstanceView) -> tuple[int, float, str]:
            return self._left_over(view), prompt_done_s(view, request), view.instance_id

        side = [view for view in able if view.role.share == PREFILL] or able
        left_s = request.first_token_due - now
        timely = [view for view in side if prompt_done_s(view, request) <= left_s]
        why = "the cheapest that is in time"
        if timely:
            chosen = min(timely, key=cost)
        else:
            chosen = min(side, key=cost)
            why = "in time nowhere, and cheapest there"
            if self._decode_load(views) < self._low:
                come = self._flip(views, PREFILL, "prompts would come too late", now)
                if come is not None and come in able:
                    chosen, why = come, "it came over from decoding, for it would be late elsewhere"
        numbers = {"done_s": prompt_done_s(chosen, request), "left_s": left_s}
        return Choice(chosen.instance_id, why, numbers)

    def goes_on(
        self, request: RouteRequest, source: InstanceView, ready: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """The decode instance that keeps its target; if none does, one more of them; else the cheapest."""
        self._label(ready)
        if source.role.share == DECODE:
            return None
        able, timely = self._takers(request, ready)
        why = "the cheapest that keeps its target"
        if not timely:
            why = "its target is kept nowhere, and it is cheapest there"
            come = self._flip(ready, DECODE, "tokens would take too long", now)
            if come is source:
                return Choice(None, "it came over to decoding with all that it has", {})
            if come is not None and self.has_room(request, come):
                timely, why = [come], "it came over to decoding"
        if not (timely or able):
            return Choice(None, "those that decode have no room", {})
        return self._cheapest(request, source, timely or able, now, why)

    def passes_on(self, source: InstanceView, views: Sequence[InstanceView]) -> bool:
        """From one side to the other."""
        return source.role.share == PREFILL and bool(self._side(views, DECODE))

    def destination(
        self, request: RouteRequest, source: InstanceView, ready: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """As `goes_on`, while nobody changes sides for it."""
        able, timely = self._takers(request, ready)
        if source.role.share == DECODE or not able:
            return None
        return self._cheapest(request, source, timely or able, now, "it will be the cheapest")

    def _interval_s(self, request: RouteRequest, view: InstanceView) -> float:
        return token_s(view, rows_of(view) + 1, self.decoding_tokens(view) + request.prompt_tokens)

    def _takers(
        self, request: RouteRequest, ready: Sequence[InstanceView]
    ) -> tuple[list[InstanceView], list[InstanceView]]:
        """Decode instances with room for it; and those of them that keep its target."""
        able = [view for view in self._side(ready, DECODE) if self.has_room(request, view)]
        return able, [view for view in able if self._interval_s(request, view) <= request.slo.tpot_s]

    def _cheapest(
        self, request: RouteRequest, source: InstanceView, able: Sequence[InstanceView], now: float, why: str
    ) -> Choice:
        def cost(view: InstanceView) -> tuple[int, float, str]:
            return self._left_over(view), self._interval_s(request, view), view.instance_id

        def judge(view: InstanceView) -> Choice:
            return self.unless_better_here(request, source, view, now, why)

        return self.best_of(request, source, able, cost, judge)

    # -- the monitor: Algorithm 2 -------------------------------------------------------------------------

    def look(self, views: Sequence[InstanceView], now: float) -> list[tuple[str, Role]]:
        """One more to decoding if that had too much to do for a while, or prefill has too little; who has
        changed sides since the last look."""
        if now - self._looked < LOOK_S:
            return []
        self._looked = now
        self._label(views)
        decode, prefill = self._decode_load(views), self._prefill_load(views)
        self._too_high = self._too_high + 1 if decode > self._high else 0
        if self._too_high >= SUSTAINED:
            self._flip(views, DECODE, "decoding has had too much to do", now)
        elif self._spare(views, prefill, decode):
            self._flip(views, DECODE, "prefill has little to do, and decoding some", now)
        told, self._told = self._told, {view.instance_id: view.role.share for view in views}
        return [
            (view.instance_id, view.role) for view in views if told.get(view.instance_id) != view.role.share
        ]

    def _spare(self, views: Sequence[InstanceView], prefill: float, decode: float) -> bool:
        """Has prefill little to do and decoding more, also after one has come over: else it would go back."""
        givers, takers = len(self._side(views, PREFILL)), len(self._side(views, DECODE))
        if givers < 2:
            return False
        return prefill * givers / (givers - 1) <= self._low <= decode * takers / (takers + 1)
