"""Roles as numbers: prompts go to instances by their shares of prefill; where decoding has none they go on
elsewhere.

With `prefill` instances a fixed split, as DistServe has it. Else the shares move along the whole space, from
all alike to prompts and decoding apart, towards what is predicted to serve most requests within their
targets.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from router.scheduler.choice import Choice, RoutingPolicy
from router.scheduler.demand import Mix
from router.scheduler.policies.constraints import Constraint
from router.scheduler.policies.moving import MovingPolicy
from router.scheduler.policies.prefix import LeastCost
from router.scheduler.policies.spread import FULL
from router.scheduler.request import RouteRequest
from router.scheduler.roles import ALIKE, EVEN, Power, Predicted, Prospect, Role, busy_share, differ
from router.scheduler.view import InstanceView
from tidepipe_common.circuit_breaker import CircuitBreaker

LOOK_S = 2.5
"""Shares are looked at so often."""
STEP = 0.25
"""By which a share moves at most at one look."""
GAIN = 1.15
"""Another point must be predicted to serve so many times what the present one does, twice in a row."""
GAIN_NEEDED = 1.03
"""The same where prompts and decoding are apart, and the present one does not bear what comes."""
WATCHED, FAILS = 16, 0.5
"""Of so many whose prompts were done last where nobody is to decode, more than this share stayed, or did not
come with their blocks: then roles do not do what was reckoned, and all are alike again."""
STUCK = 0.5
"""Of the TTFT target, that a transfer takes for which nobody goes. (Who stays because decoding is slower
elsewhere is no failure: all are busy.)"""
NEARLY = 0.1
"""Instances whose costs, memory and links differ by less are one kind."""
PACED_POLICY = "auto"
"""Of instances that choose the tokens of their steps by targets."""


@dataclass(frozen=True, slots=True)
class Aim:
    """Shares to move to. seen: looks at which they were the best ones, in a row."""

    shares: tuple[float, ...]
    seen: int
    predicted: Predicted
    present: Predicted


class Roles(MovingPolicy):
    """Of one macro instance: prompts by shares, and shares that move by themselves or stand."""

    def __init__(
        self,
        prefill: int = 0,
        *,
        name: str = "roles",
        alike: RoutingPolicy | None = None,
        apart: Constraint | None = None,
    ) -> None:
        """prefill: instances that compute prompts and nothing else; 0: shares move by themselves.

        alike: chooses while all shares are the same. apart: must hold where a prompt goes, else it waits.
        """
        super().__init__()
        self.name = name
        self._prefill = prefill
        self._alike = alike or LeastCost()
        self._apart = apart
        self._looked = -LOOK_S
        self._aim: Aim | None = None
        self._came: deque[bool] = deque(maxlen=WATCHED)
        self._breaker = CircuitBreaker()
        """Open: roles are not tried."""

    # -- where prompts go ---------------------------------------------------------------------------

    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """While all are alike as that policy says; else the instance that has the prompt done soonest, by its
        share; of those with one share the one where it costs least."""
        if self._prefill:
            self._split(views)
        if not differ([view.role.share for view in views]):
            return self._alike.choose(request, views, now)
        able = [view for view in views if view.holds(request)]
        if not able:
            return Choice(None, FULL, {"instances": len(views)})
        # Rather at an instance that decodes than nowhere.
        taking = [view for view in able if view.role.share > 0.0] or able
        soonest = min(taking, key=lambda view: view.prompt_done_s(request) / max(view.role.share, 0.01))
        taking = [view for view in taking if view.role.share == soonest.role.share]
        choice = LeastCost().choose(request, taking, now)
        if choice.instance_id is None:
            return choice
        chosen = next(view for view in taking if view.instance_id == choice.instance_id)
        if self._apart is not None and not (check := self._apart.check(request, chosen, now)).satisfied:
            return self._beside(request, [view for view in able if view not in taking], now) or Choice(
                None, f"{chosen.instance_id}: {check.reason}", check.numbers
            )
        numbers = {"share": chosen.role.share, **choice.numbers}
        return Choice(choice.instance_id, f"by its share of prefill: {choice.reason}", numbers)

    def _beside(self, request: RouteRequest, others: list[InstanceView], now: float) -> Choice | None:
        """One of those with less of prefill, for a prompt that would be late where most of it is, if all
        who decode there keep their targets: as while all are alike. It stays there."""
        choice = self._alike.choose(request, others, now) if others else None
        if choice is None or choice.instance_id is None:
            return None
        return replace(choice, reason=f"it would be late where prompts are computed; {choice.reason}")

    # -- where they go on ---------------------------------------------------------------------------

    def went(self, request_id: str, *, well: bool) -> None:
        """See MovingPolicy."""
        super().went(request_id, well=well)
        self._came.append(well)

    def goes_on(
        self, request: RouteRequest, source: InstanceView, ready: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """Where decoding has more of a share than here, if that pays."""
        if not differ([view.role.share for view in ready]):
            return None
        choice = self._where(request, source, ready, now)
        if choice is None or choice.instance_id is not None or source.role.share < 1.0 - ALIKE:
            return choice
        # Where nobody has room there is no transfer.
        if choice.numbers.get("transfer_s", inf) > STUCK * request.slo.ttft_s:
            self._came.append(False)
        return choice

    def passes_on(self, source: InstanceView, views: Sequence[InstanceView]) -> bool:
        """Where others have less of prefill."""
        shares = [view.role.share for view in views if view.ready]
        return differ(shares) and source.role.share > min(shares) + ALIKE

    def destination(
        self, request: RouteRequest, source: InstanceView, ready: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """As `goes_on` would say it."""
        if not differ([view.role.share for view in ready]):
            return None
        return self._where(request, source, ready, now)

    def _where(
        self, request: RouteRequest, source: InstanceView, ready: Sequence[InstanceView], now: float
    ) -> Choice | None:
        decoding = self.decoding_tokens
        rest = sum(1.0 - view.role.share for view in ready)
        fair = (1.0 - source.role.share) / rest * sum(decoding(view) for view in ready) if rest > 0 else 0.0
        # No report may have counted it yet.
        mine = max(decoding(source), request.prompt_tokens)
        if mine <= fair:
            return None  # it has not more of decoding than is its part
        others = [view for view in ready if view.role.share < source.role.share]
        able = [view for view in others if self.has_room(request, view)]
        if not able:
            why = "those that decode have no room" if others else "nobody decodes more than it does"
            return Choice(None, why, {"decoding": mine, "fair": fair})

        def order(view: InstanceView) -> tuple[float, str]:
            return decoding(view) / (1.0 - view.role.share), view.instance_id

        def judge(view: InstanceView) -> Choice:
            return self._if_it_pays(request, source, view, ready, now)

        return self.best_of(request, source, able, order, judge)

    def _if_it_pays(
        self,
        request: RouteRequest,
        source: InstanceView,
        target: InstanceView,
        ready: Sequence[InstanceView],
        now: float,
    ) -> Choice:
        """Compare what staying and going take from it and from those who are there."""
        total = sum(view.role.share for view in ready)
        mix = self.asked.mix
        output = self.output_of(request, source)
        nbytes = request.prompt_tokens * target.transfer.token_bytes
        pause = self.pause_s(request, source, target, now)
        here_s, here_all = _token_s(source, total, mix)
        there_s, there_all = _token_s(target, total, mix)
        numbers = {
            "share": source.role.share,
            "bytes": nbytes,
            "transfer_s": pause,
            "token_here_s": here_s,
            "token_there_s": there_s,
            "stays_cost_s": output * here_all,
            "goes_cost_s": pause + output * there_all,
        }
        late = self.is_late(request, output, pause, there_s)
        if stays := self.kept_here(request, output, pause, here_s, there_s):
            return Choice(None, stays, numbers)
        if not late and source.role.share >= 1.0 - ALIKE:
            return Choice(target.instance_id, "its prompt is done, and decoding has no share here", numbers)
        if pause + output * there_all >= output * here_all:
            return Choice(None, "the transfer costs more than it saves", numbers)
        return Choice(target.instance_id, "its prompt is done, and decoding costs less there", numbers)

    # -- shares -------------------------------------------------------------------------------------

    def _split(self, views: Sequence[InstanceView]) -> None:
        """A fixed one: the first instances prefill. The last one decodes, or does both if it is alone."""
        names = [view.instance_id for view in over_nodes(views) if not view.draining]
        first = set(names[: min(self._prefill, len(names) - 1)])
        why = "a fixed split" if len(first) == self._prefill else "a fixed split, with one left to decode"
        numbers = {"prefill_instances": self._prefill, "instances": len(names)}
        for view in views:
            share = EVEN if len(names) < 2 else 1.0 if view.instance_id in first else 0.0
            if (view.role.share, view.role.reason) != (share, why):
                view.role = Role(share, why, numbers)

    def look(self, views: Sequence[InstanceView], now: float) -> list[tuple[str, Role]]:
        """Move shares a step; who has which from now on, if one has another."""
        before = {view.instance_id: view.role.share for view in views}
        if self._prefill:
            self._split(views)
        elif differ(list(before.values())) and (why := self._why_back(views)):
            self._come_back(why, views, now)
        elif now - self._looked >= LOOK_S and self._breaker.lets(now):
            self._looked = now
            self._consider([view for view in views if view.ready], self.asked.mix)
        return [
            (view.instance_id, view.role) for view in views if view.role.share != before[view.instance_id]
        ]

    def _why_back(self, views: Sequence[InstanceView]) -> str:
        """Why those whose prompts are done stay where nobody is to decode; empty: they do not."""
        if not reach([view.role.share for view in views], views):
            return "fetches of KV blocks failed"
        if len(self._came) == WATCHED and self._came.count(False) > FAILS * WATCHED:
            return "sequences did not go on elsewhere as they should"
        return ""

    def _come_back(self, why: str, views: Sequence[InstanceView], now: float) -> None:
        """All alike, at once."""
        again_s = self._breaker.failed(now, now)
        numbers = {"stayed": self._came.count(False), "of": len(self._came), "again_in_s": again_s}
        role = Role(EVEN, f"all alike: {why}", numbers)
        for view in views:
            view.role = role
        self._aim = None
        self._came.clear()

    def _consider(self, views: list[InstanceView], mix: Mix | None) -> None:
        views = over_nodes(views)
        if len(views) < 2 or mix is None:
            return
        powers = _powers(views)
        prospect = Prospect(mix)
        now_at = tuple(view.role.share for view in views)
        aim = self._aim if self._aim is not None and len(self._aim.shares) == len(views) else None
        # On its way between two points it is compared by where it goes.
        standing = aim.shares if aim is not None and aim.seen >= 2 else now_at
        nodes = [view.transfer.node if view.transfer.near.bytes_per_s > 0.0 else "" for view in views]
        present = prospect.goodput(standing, powers, nodes)
        # What comes must be borne; but where all are alike more is borne than predicted.
        short = differ(standing) and mix.rate > present.rate
        needed = (GAIN_NEEDED if short else GAIN) * present.rate
        # How much a point serves is looked for only where it is enough.
        better = [
            (prospect.goodput(point, powers, nodes), point)
            for point in points(len(views))
            if point != standing and reach(point, views) and prospect.serves(point, powers, nodes, needed)
        ]
        best = max(better, key=lambda found: found[0].rate, default=(present, standing))
        if best[0].rate > needed:
            seen = aim.seen + 1 if aim is not None and aim.shares == best[1] else 1
            self._aim = Aim(best[1], seen, best[0], present)
        elif aim is not None and aim.seen < 2:
            self._aim = None
        aim = self._aim
        if aim is None or aim.seen < 2:
            return
        numbers = {
            "predicted_rps": aim.predicted.rate,
            "before_rps": aim.present.rate,
            "rate_rps": mix.rate,
            "prompt": mix.sizes.prompt,
            "output": mix.sizes.output,
            "link_bytes_per_s": min(power.transfer.far.bytes_per_s for power in powers),
        }
        reason = f"predicted to serve more than before, where {aim.present.limit or 'nothing'} was the limit"
        for view, share in zip(views, aim.shares, strict=True):
            here = view.role.share
            step = max(-STEP, min(STEP, share - here))
            if abs(step) > 1e-9:
                view.role = Role(round(here + step, 6), reason, numbers)


def over_nodes(views: Sequence[InstanceView]) -> list[InstanceView]:
    """By name, the first ones of all nodes before the second ones: those that prefill, which come first in a
    point, then share ways out with as few of their kind as can be, and those that decode ways in. Who says
    of no node where it is has one of its own."""
    places: Counter[str] = Counter()
    placed: list[tuple[int, str, InstanceView]] = []
    for view in sorted(views, key=lambda view: view.instance_id):
        node = view.transfer.node
        placed.append((places[node] if node else 0, view.instance_id, view))
        places[node] += 1
    return [view for _, _, view in sorted(placed, key=lambda one: one[:2])]


def _powers(views: Sequence[InstanceView]) -> list[Power]:
    """What they can do; those that are nearly alike count as the first of them, and are asked once."""
    kinds: list[Power] = []
    found = []
    for view in views:
        paced = view.status is not None and view.status.policy == PACED_POLICY
        one = Power(view.facts.prefill, view.kv_total, view.transfer, paced)
        kind = next((kind for kind in kinds if _nearly(kind, one)), None)
        if kind is None:
            kinds.append(one)
        found.append(kind or one)
    return found


def _nearly(one: Power, other: Power) -> bool:
    def near(a: float, b: float) -> bool:
        return abs(a - b) <= NEARLY * max(a, b)

    return (
        one.paced is other.paced
        and one.prefill.stages == other.prefill.stages
        and near(one.kv_tokens, other.kv_tokens)
        and near(one.transfer.token_bytes, other.transfer.token_bytes)
        and near(one.transfer.far.bytes_per_s, other.transfer.far.bytes_per_s)
        and near(one.transfer.near.bytes_per_s, other.transfer.near.bytes_per_s)
        and all(near(one.prefill.step_s(n, 0, 0.0), other.prefill.step_s(n, 0, 0.0)) for n in (1, 64, 512))
    )


def points(instances: int) -> list[tuple[float, ...]]:
    """The shares that are weighed: all alike; prompts and decoding apart; and, between these, prompts mostly
    here with some decoding, or decoding mostly there with some prompts."""
    found = [(EVEN,) * instances]
    for prefill in range(1, instances):
        for high, low in ((1.0, 0.0), (0.75, 0.0), (1.0, 0.25), (0.75, 0.25)):
            found.append((high,) * prefill + (low,) * (instances - prefill))
    return found


def reach(shares: Sequence[float], views: Sequence[InstanceView]) -> bool:
    """Has everyone who is not to decode somebody that is to, and that does not bar it?"""
    pairs = list(zip(shares, views, strict=True))
    return all(
        any(less < share and not other.bars(view.instance_id) for less, other in pairs)
        for share, view in pairs
        if share >= 1.0 - ALIKE
    )


def _token_s(view: InstanceView, total: float, mix: Mix | None) -> tuple[float, float]:
    """Predicted seconds until one more that decodes there has its next token; and what that takes from all:
    its own time, its row in the others' rounds, its place in the steps of prompts."""
    prefill, share, rows = view.facts.prefill, view.role.share, view.sequences
    busy = busy_share(prefill, mix, share / total if total > 0.0 else 0.0)
    if busy is None:
        busy = share
    context = max(0, view.tokens - view.left.tokens)
    reading = prefill.step_s(1, context, 0.0) - prefill.step_s(1, 0, 0.0)
    round_s = prefill.round_s(rows + 1) + reading
    prompt_s = prefill.stages * prefill.step_s(prefill.step_tokens, 0, 0.0) + reading
    own = busy * max(prompt_s, round_s) + (1.0 - busy) * round_s
    row_s = prefill.round_s(rows + 1) - prefill.round_s(rows) if rows else 0.0
    place_s = prompt_s / (prefill.stages * prefill.step_tokens)
    return own, own + (1.0 - busy) * rows * row_s + busy * place_s * (1 + _waiting(view))


def _waiting(view: InstanceView) -> int:
    """Prompts that wait there, roughly: those of a step's size."""
    return -(-view.left.tokens // view.facts.prefill.step_tokens)
