"""What routing policies have in common under which sequences go on at another instance: who is on the way,
when links will be free, what an instance would make of one more."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from router.scheduler.choice import Choice
from router.scheduler.demand import Mix
from router.scheduler.request import UNSAID_TOKENS, Decoding, RouteRequest
from router.scheduler.roles import Link, Role, Ways, left_s
from router.scheduler.steady_state import BESIDE
from router.scheduler.view import InstanceView
from tidepipe_common.latency.work import prompt_work

PAUSE = 1 / 8
"""Of the time that an answer of mean length has to spare by its TPOT target, for its blocks to travel: so one
of a quarter of the length keeps it, too."""
ON_THE_WAY_S = 5.0
"""A sequence that was to go somewhere and has not come by then is not coming."""


@dataclass(frozen=True, slots=True)
class Going:
    """A sequence between two instances. until: counted as long. there: when its blocks are that go ahead."""

    target: str
    tokens: int
    until: float
    there: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for. output: mean tokens of an answer; None, as of `mix`: too little is known."""

    mix: Mix | None = None
    output: float | None = None


class MovingPolicy(ABC):
    """Of one macro instance. `choose` as any routing policy; `first_token` says who goes on elsewhere once
    its prompt is done, `flow` who does so later; `look` moves the shares of prefill, which the views keep.

    asked: is told before each `look`.
    """

    name: str

    def __init__(self) -> None:
        self.asked = Asked()
        self.ways = Ways()
        self.handed = self.strayed = 0
        self.stayed: dict[str, int] = {}
        self._going: dict[str, Going] = {}
        self._ahead: dict[str, Going] = {}

    @abstractmethod
    def choose(self, request: RouteRequest, views: Sequence[InstanceView], now: float) -> Choice:
        """Part of RoutingPolicy."""

    @abstractmethod
    def goes_on(
        self, request: RouteRequest, source: InstanceView, ready: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """Where one goes on whose prompt is done, see first_token. ready: instances."""

    def passes_on(self, source: InstanceView, views: Sequence[InstanceView]) -> bool:
        """Will one that comes to an instance probably go on elsewhere when its prompt is done?"""
        return False

    def destination(
        self, request: RouteRequest, source: InstanceView, ready: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """Where one would go on whose prompt is being computed, as things stand; nothing is noted."""
        return None

    def lacks(self, views: Sequence[InstanceView]) -> str:
        """Why it would find nothing to go by among these instances, and what helps; empty: it would."""
        return ""

    def look(self, views: Sequence[InstanceView], now: float) -> list[tuple[str, Role]]:
        """Who has which share from now on, if one has another."""
        return []

    def flow(
        self, decoding: Sequence[Decoding], views: Sequence[InstanceView], now: float
    ) -> list[tuple[Decoding, Choice]]:
        """Who of those that decode goes on elsewhere."""
        return []

    def sent(self, request: RouteRequest, view: InstanceView) -> None:
        """It was given to an instance."""
        if self._going.pop(request.request_id, None) is not None:
            well = request.brought > 0 and view.fetches_from(request.giver)
            self.went(request.request_id, well=well)

    def went(self, request_id: str, *, well: bool) -> None:
        """One that was to go on elsewhere has come, with its blocks or without, or never came."""
        self.strayed += not well

    def forget(self, request_id: str, *, here: bool = True) -> None:
        """A request will not come; or (here: False) it is not any more where its prompt was computed."""
        self._ahead.pop(request_id, None)
        if here:
            self._going.pop(request_id, None)

    def prompt_begun(
        self, request: RouteRequest, source: InstanceView, views: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """Where the blocks of one go ahead whose prompt is being computed; None: nowhere."""
        ready = [view for view in views if view.ready]
        request = beside_prompt(request, source)
        choice = self.destination(request, source, ready, now)
        if choice is None or choice.instance_id is None or request.request_id in self._ahead:
            return None
        target = next(view for view in ready if view.instance_id == choice.instance_id)
        tokens, name = request.prompt_tokens, request.request_id
        there = now + max(request.beside_s, self.transfer_s(tokens, source, target, now))
        nbytes = tokens * target.transfer.token_bytes
        self.ways.send(link(source, target), nbytes, now)
        self._ahead[name] = Going(target.instance_id, tokens, there + ON_THE_WAY_S, there)
        return choice

    def first_token(
        self, request: RouteRequest, source: InstanceView, views: Sequence[InstanceView], now: float
    ) -> Choice | None:
        """Where one goes on whose prompt is done: elsewhere, or (instance None) where it is, and why. None:
        there is nothing to decide."""
        ready = [view for view in views if view.ready]
        self.lose_track(now)
        ahead = self._ahead.pop(request.request_id, None)
        if ahead is not None:
            request = replace(request, ahead=ahead.target, ahead_s=max(0.0, ahead.there - now))
        choice = self.goes_on(request, source, ready, now)
        if choice is None:
            return None
        if choice.instance_id is None:
            self.stayed[choice.reason] = self.stayed.get(choice.reason, 0) + 1
            return choice
        target = next(view for view in ready if view.instance_id == choice.instance_id)
        there = request.ahead == target.instance_id
        self.sends(request.request_id, request.prompt_tokens, source, target, now, there=there)
        return choice

    def sends(
        self,
        request_id: str,
        tokens: int,
        source: InstanceView,
        target: InstanceView,
        now: float,
        *,
        there: bool = False,
    ) -> None:
        """Take note that one with so many tokens goes from here to there. there: its blocks went ahead."""
        nbytes = 0.0 if there else tokens * target.transfer.token_bytes
        self.ways.send(link(source, target), nbytes, now)
        self._going[request_id] = Going(target.instance_id, tokens, now + ON_THE_WAY_S)
        self.handed += 1

    def lose_track(self, now: float) -> None:
        """Of those that should have come by now."""
        for name in [name for name, one in self._going.items() if one.until <= now]:
            del self._going[name]
            self.went(name, well=False)
        for name in [name for name, one in self._ahead.items() if one.until <= now]:
            del self._ahead[name]

    def goes(self, request_id: str) -> bool:
        """Is it between two instances?"""
        return request_id in self._going

    def coming(self, view: InstanceView) -> int:
        """Tokens of those that are on their way there."""
        going = chain(self._going.values(), self._ahead.values())
        return sum(one.tokens for one in going if one.target == view.instance_id)

    def decoding_tokens(self, view: InstanceView) -> int:
        """Of all that decode there or come for it."""
        return max(0, view.tokens - view.left.tokens) + self.coming(view)

    def has_room(self, request: RouteRequest, view: InstanceView) -> bool:
        """Would it take one over, blocks and all?"""
        return (
            view.fetches_from(request.giver)
            and view.holds(request)
            and view.kv_of(request) + self.coming(view) < view.kv_free
        )

    def transfer_s(self, tokens: int, source: InstanceView, target: InstanceView, now: float) -> float:
        """Until the blocks of so many tokens would be there."""
        return self.ways.seconds(link(source, target), tokens * target.transfer.token_bytes, now)

    def pause_s(self, request: RouteRequest, source: InstanceView, target: InstanceView, now: float) -> float:
        """How long it would stand still to go there when its prompt is done: until the rest of its blocks is
        there, of which others have gone ahead."""
        way = link(source, target).way
        if request.ahead == target.instance_id:
            return way.latency_s + request.ahead_s
        whole_s = self.transfer_s(request.prompt_tokens, source, target, now)
        return left_s(way, whole_s, request.beside_s)

    def best_of(
        self,
        request: RouteRequest,
        source: InstanceView,
        able: Sequence[InstanceView],
        order: Callable[[InstanceView], Any],
        judge: Callable[[InstanceView], Choice],
    ) -> Choice:
        """Of the first one by an order, and the first one in the node of the source, that to which going
        costs less by the judge. Where blocks have gone ahead, that one, if it is able."""
        able = [view for view in able if view.instance_id == request.ahead] or able
        best = [min(able, key=order)]
        if not link(source, best[0]).near:
            best += sorted((view for view in able if link(source, view).near), key=order)[:1]
        choices = [judge(view) for view in best]
        return min(choices, key=lambda one: (one.instance_id is None, one.numbers["goes_cost_s"]))

    def output_of(self, request: RouteRequest, view: InstanceView) -> float:
        """Tokens that its answer is expected to have."""
        expected = self.asked.output or view.expected_output or UNSAID_TOKENS
        return min(request.max_tokens or expected, expected)

    @staticmethod
    def is_late(request: RouteRequest, output: float, pause_s: float, there_s: float) -> bool:
        """Would its blocks be so long on their way that its target is at risk, at so many seconds a token?"""
        return pause_s > PAUSE * output * max(0.0, request.slo.tpot_s - there_s)

    def kept_here(
        self, request: RouteRequest, output: float, pause_s: float, here_s: float, there_s: float
    ) -> str:
        """Why it keeps its target if it stays and, for all that is known, only then; empty: it does not."""
        enough = BESIDE.tpot * request.slo.tpot_s
        late = self.is_late(request, output, pause_s, there_s)
        if here_s > enough or not (late or there_s > enough):
            return ""
        why = "the transfer would take longer" if late else "decoding there is slower"
        return f"{why} than its target allows, which is kept here"

    def unless_better_here(
        self, request: RouteRequest, source: InstanceView, target: InstanceView, now: float, why: str
    ) -> Choice:
        """It goes there from where prompts come first, but for links so full that it is better off here."""
        output = self.output_of(request, source)
        pause_s = self.pause_s(request, source, target, now)
        here_s = token_s(source, rows_of(source), self.decoding_tokens(source), prompts=True)
        more = self.decoding_tokens(target) + request.prompt_tokens
        there_s = token_s(target, rows_of(target) + 1, more)
        goes_s = pause_s + output * there_s
        numbers = {
            "transfer_s": pause_s,
            "token_here_s": here_s,
            "token_there_s": there_s,
            "goes_cost_s": goes_s,
        }
        if stays := self.kept_here(request, output, pause_s, here_s, there_s):
            return Choice(None, stays, numbers)
        late = self.is_late(request, output, pause_s, there_s)
        if late and goes_s >= output * here_s:
            return Choice(None, "the transfer costs more than it saves", numbers)
        return Choice(target.instance_id, why, numbers)


def beside_prompt(request: RouteRequest, source: InstanceView) -> RouteRequest:
    """The same, whose blocks can go ahead while its prompt is computed."""
    return replace(request, beside_s=source.facts.prefill.seconds(prompt_work(request.prompt_tokens)))


def link(source: InstanceView, target: InstanceView) -> Link:
    """Between two instances, for KV blocks."""
    giver, taker = source.transfer.node, target.transfer
    return Link(source.instance_id, target.instance_id, taker.is_near(giver), taker.way(giver))


def rows_of(view: InstanceView) -> int:
    """Sequences that decode there, roughly: all but the part that waiting prompts have of the tokens."""
    waiting = min(1.0, view.left.tokens / view.tokens) if view.tokens else 0.0
    return math.ceil(view.sequences * (1.0 - waiting))


def token_s(view: InstanceView, rows: int, context: float, *, prompts: bool = False) -> float:
    """Predicted seconds between two tokens of so many that decode there, with so many tokens in all, and with
    what waits of prompts in the steps; a full step of them if prompts are what it is for."""
    prefill = view.facts.prefill
    each = max(1, math.ceil(rows / prefill.stages))
    tokens = prefill.step_tokens if prompts else min(prefill.step_tokens, each + view.left.tokens)
    return prefill.stages * prefill.step_s(max(each, tokens), context / prefill.stages, 0.0)


def prompt_done_s(view: InstanceView, request: RouteRequest) -> float:
    """Predicted seconds until its prompt would be done there, behind those that wait and in what the steps of
    those that decode leave of their budget; infinite if that is nothing."""
    prefill, rows = view.facts.prefill, rows_of(view) / view.facts.prefill.stages
    chunk = prefill.step_tokens - rows
    if chunk < 1.0:
        return math.inf
    work = view.left.plus(view.work_of(request))
    steps = math.ceil(work.tokens / chunk)
    context = max(0, view.tokens - view.left.tokens) / prefill.stages
    # The last step is no fuller than it must be.
    last = work.tokens - (steps - 1) * chunk + rows
    spent = (steps - 1) * prefill.step_s(prefill.step_tokens, context, 0.0)
    end = max(1, math.ceil(last))
    return (
        spent
        + prefill.step_s(end, context, work.pairs)
        + ((prefill.stages - 1) * prefill.step_s(end, context, 0.0))
    )
