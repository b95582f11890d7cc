"""TaiChi (arXiv 2508.01989): instances with large and with small chunks, between which latency is shifted
from requests that have some to spare to those that have none. A baseline.

Taken from the paper: prefill-heavy and decode-heavy instances, which differ in their chunk alone, with the
three sliders R_PD, S_P and S_D (section 3.1); both compute prompts and decode in mixed steps (3.2); flowing
decode (3.3, Algorithm 1): decoding begins at a decode-heavy instance, above a watermark of memory those with
the longest outputs so far are degraded to a prefill-heavy one, and flow back when their TPOT comes near its
target; length-aware prefill (3.4, Algorithm 2): a prompt that a decode-heavy instance can compute in time
goes there, so that the prefill-heavy ones are kept for those that have no time.

Simplified: which kind an instance is says its chunk; sliders are set by who starts the cluster, and searched
in virtual time, as the paper does before it serves. Times come from the instances' cost models. Added, for
links of 10 Gbit/s: nobody goes whose blocks would come too late, and a sequence flows back once, so that none
goes to and fro; blocks go ahead while prompts are computed; and of instances within the node and beyond it
that is taken to which going costs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.scheduler.choice import Choice
from router.scheduler.policies.moving import ON_THE_WAY_S, MovingPolicy, beside_prompt, prompt_done_s
from router.scheduler.policies.spread import FULL
from router.scheduler.request import Decoding, RouteRequest
from router.scheduler.roles import EVEN, Role
from router.scheduler.view import InstanceView
from tidepipe_common.settings.defaults import ALL_ALIKE

HEAVY, LIGHT = 0.75, 0.25
"""Shares of prefill by which the kinds are shown."""
WATERMARK = 0.95
"""M: of a decode-heavy instance's memory (the paper's example)."""
BACK = 0.96
"""Alpha: of the TPOT target, from which on a degraded sequence flows back (the paper's example)."""
PATIENCE = 0.3
"""Of the time left until its TTFT target, in which an instance must be predicted to have a prompt done. All
of it in the paper: but what comes next at a decode-heavy instance makes it later than predicted."""

LOOK_S = 1.0
"""So often kinds are looked at, to be shown."""


def kinds(views: Sequence[InstanceView]) -> tuple[list[InstanceView], list[InstanceView]]:
    """Prefill-heavy ones and decode-heavy ones, by their chunks; none of either if all are alike."""
    chunks = [view.facts.prefill.step_tokens for view in views]
    if not chunks or min(chunks) == max(chunks):
        return [], []
    middle = (min(chunks) + max(chunks)) / 2
    heavy = [view for view, chunk in zip(views, chunks, strict=True) if chunk > middle]
    return heavy, [view for view, chunk in zip(views, chunks, strict=True) if chunk <= middle]


@dataclass(slots=True)
class Flow:
    """One that decodes. request: as it was at its first token, which came at `began`. seen: when it was last
    heard of. back: it has flowed back."""

    request: RouteRequest
    began: float
    seen: float
    back: bool = False


class TaiChi(MovingPolicy):
    """See the module."""

    name = "taichi"

    def __init__(self, watermark: float = WATERMARK, back: float = BACK, patience: float = PATIENCE) -> None:
        """See WATERMARK, BACK and PATIENCE."""
        super().__init__()
        self._watermark, self._back, self._patience = watermark, back, patience
        self._flows: dict[str, Flow] = {}
        self._looked = -LOOK_S

    # -- where prompts go: Algorithm 2 ----------------------------------------------------------------

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """Of the decode-heavy ones that have it done in time the one with the fewest prompt tokens; else of
        the prefill-heavy ones; else where it is done soonest."""
        able = [view for view in views if view.holds(request)]
        if not able:
            return Choice(None, FULL, {"instances": len(views)})
        heavy, light = kinds([view for view in views if view.ready])
        done_s = {view.instance_id: self._done_s(request, view, heavy, light, now) for view in able}
        left_s = self._patience * (request.first_token_due - now)
        timely = [view for view in able if done_s[view.instance_id] <= left_s]
        why = "in time, and prefill-heavy or alike: decode-heavy ones are late"
        if slow := [view for view in timely if view in light]:
            timely, why = slow, "decode-heavy, and in time"
        if timely:
            chosen = min(timely, key=lambda view: (view.left.tokens, view.tokens, view.instance_id))
        else:
            why = "in time nowhere, and soonest there"
            chosen = min(able, key=lambda view: (done_s[view.instance_id], view.tokens, view.instance_id))
        numbers = {"done_s": done_s[chosen.instance_id], "left_s": left_s, "waiting": chosen.left.tokens}
        return Choice(chosen.instance_id, why, numbers)

    def _done_s(
        self,
        request: RouteRequest,
        view: InstanceView,
        heavy: Sequence[InstanceView],
        light: Sequence[InstanceView],
        now: float,
    ) -> float:
        """Until its second token can be computed: its prompt, and its blocks' way if it goes on elsewhere."""
        way_s = 0.0
        if view in heavy:
            ahead = beside_prompt(request, view)
            way_s = min(self.pause_s(ahead, view, other, now) for other in light)
        return prompt_done_s(view, request) + way_s

    # -- where they go on: Algorithm 1 ----------------------------------------------------------------

    def goes_on(
        self, request: RouteRequest, source: InstanceView, ready: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """Decoding begins at a decode-heavy instance."""
        heavy, light = kinds(ready)
        self._flows[request.request_id] = Flow(request, now, now)
        if source not in heavy:
            return None
        return self._begins_at(request, source, light, now)

    def passes_on(self, source: InstanceView, views: Sequence[InstanceView]) -> bool:
        """From a prefill-heavy one."""
        return source in kinds([view for view in views if view.ready])[0]

    def destination(
        self, request: RouteRequest, source: InstanceView, ready: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """As `goes_on`."""
        heavy, light = kinds(ready)
        return self._begins_at(request, source, light, now) if source in heavy else None

    def _begins_at(
        self, request: RouteRequest, source: InstanceView, light: Sequence[InstanceView], now: float
    ) -> Choice:
        able = self._roomy(request, light)
        if not able:
            return Choice(None, "decode-heavy instances are full", {"watermark": self._watermark})

        def judge(view: InstanceView) -> Choice:
            why = "decoding begins at a decode-heavy instance"
            return self.unless_better_here(request, source, view, now, why)

        return self.best_of(request, source, able, self._busy, judge)

    def flow(
        self, decoding: Sequence[Decoding], views: Sequence[InstanceView], now: float
    ) -> list[tuple[Decoding, Choice]]:
        """The longest ones leave decode-heavy instances that are full; those whose TPOT nears its target come
        back."""
        self.lose_track(now)
        heavy, light = kinds([view for view in views if view.ready])
        here = [one for one in decoding if one.request_id in self._flows]
        for one in here:
            self._flows[one.request_id].seen = now
        self._flows = {
            name: flow for name, flow in self._flows.items() if now - flow.seen <= 2 * ON_THE_WAY_S
        }
        here = [one for one in here if not self.goes(one.request_id) and one.output_tokens > 1]
        found = [*self._back_from(heavy, light, here, now)]
        for view in light:
            found += self._degraded(view, heavy, here, now)
        return found

    def _degraded(
        self, view: InstanceView, heavy: Sequence[InstanceView], here: Sequence[Decoding], now: float
    ) -> list[tuple[Decoding, Choice]]:
        found = []
        over = self._used(view) - self._watermark * view.kv_total
        mine = (one for one in here if one.instance_id == view.instance_id)
        for one in sorted(mine, key=lambda one: (-one.output_tokens, one.request_id)):
            if over <= 0.0:
                break
            flow = self._flows[one.request_id]
            request = _grown(flow.request, one)
            able = [other for other in heavy if self.has_room(request, other)]
            if flow.back or not able:
                continue
            target = min(able, key=lambda other: (self.decoding_tokens(other), other.instance_id))
            pause_s = self.transfer_s(request.prompt_tokens, view, target, now)
            if now - flow.began + pause_s > self._back * request.slo.tpot_s * one.output_tokens:
                continue  # it has nothing to spare
            over -= request.prompt_tokens
            numbers = {"output": one.output_tokens, "over_tokens": over, "transfer_s": pause_s}
            self.sends(one.request_id, request.prompt_tokens, view, target, now)
            found.append(
                (one, Choice(target.instance_id, "degraded: the longest where memory ends", numbers))
            )
        return found

    def _back_from(
        self,
        heavy: Sequence[InstanceView],
        light: Sequence[InstanceView],
        here: Sequence[Decoding],
        now: float,
    ) -> list[tuple[Decoding, Choice]]:
        found = []
        names = {view.instance_id: view for view in heavy}
        for one in here:
            flow = self._flows[one.request_id]
            tpot_s = (now - flow.began) / (one.output_tokens - 1)
            if one.instance_id not in names or tpot_s <= self._back * flow.request.slo.tpot_s:
                continue
            request, source = _grown(flow.request, one), names[one.instance_id]
            able = self._roomy(request, light)
            if not able:
                continue
            target = min(able, key=self._busy)
            choice = self.unless_better_here(request, source, target, now, "back: its TPOT nears the target")
            if choice.instance_id is not None:
                flow.back = True
                self.sends(one.request_id, request.prompt_tokens, source, target, now)
                found.append((one, replace(choice, numbers={**choice.numbers, "tpot_s": tpot_s})))
        return found

    def _roomy(self, request: RouteRequest, light: Sequence[InstanceView]) -> list[InstanceView]:
        """The decode-heavy instances that stay under the watermark with it."""
        return [
            view
            for view in light
            if self.has_room(request, view)
            and self._used(view) + request.prompt_tokens <= self._watermark * view.kv_total
        ]

    def _busy(self, view: InstanceView) -> tuple[int, str]:
        """By what it has to decode."""
        return self.decoding_tokens(view), view.instance_id

    def _used(self, view: InstanceView) -> int:
        return view.kv_total - view.kv_free + self.coming(view)

    # -- kinds ------------------------------------------------------------------------------------------

    def lacks(self, views: Sequence[InstanceView]) -> str:
        """Two kinds. Instances that are away for now count: they come back with their chunks."""
        if not views or kinds(views)[0]:
            return ""
        return (
            f"{ALL_ALIKE}: start some with other --policy-settings (token_budget), or choose another routing"
        )

    def look(self, views: Sequence[InstanceView], now: float) -> list[tuple[str, Role]]:
        """Kinds are shown as shares."""
        if now - self._looked < LOOK_S:
            return []
        self._looked = now
        heavy, light = kinds([view for view in views if view.ready])
        moved = []
        for view in views:
            share, why = EVEN, "all alike"
            if view in heavy:
                share, why = HEAVY, "prefill-heavy, by its chunk"
            elif view in light:
                share, why = LIGHT, "decode-heavy, by its chunk"
            if view.ready and view.role.share != share:
                view.role = Role(share, why, {"chunk": view.facts.prefill.step_tokens})
                moved.append((view.instance_id, view.role))
        return moved


def _grown(request: RouteRequest, one: Decoding) -> RouteRequest:
    """As it is by now."""
    more = one.output_tokens - 1
    longest = max(1, request.max_tokens - more) if request.max_tokens else 0
    tokens = request.prompt_tokens + more
    return replace(request, prompt_tokens=tokens, max_tokens=longest, giver=one.instance_id)
