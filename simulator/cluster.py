"""A cluster in virtual time: the router's overall scheduler, and instances that answer it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol

from router.scheduler.events import (
    Action,
    AddInstance,
    AnswerEnded,
    DrainInstance,
    Event,
    Expired,
    FetchAhead,
    FirstToken,
    HandOver,
    InstanceJoined,
    InstanceLeft,
    InstanceReported,
    InstancesStarting,
    PromptBegun,
    QueueFull,
    Regrouped,
    RequestArrived,
    RequestWithdrawn,
    RoleMoved,
    Route,
    Shed,
    Tick,
)
from router.scheduler.instance_report import InstanceReport
from router.scheduler.macro import MacroInstance
from router.scheduler.policies.catalog import BY_SLACK, FINDING
from router.scheduler.prefill import PrefillTime
from router.scheduler.request import Decoding, RouteRequest
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler
from router.scheduler.shedding import WAIT_SHARE
from router.scheduler.view import InstanceFacts
from simulator.job import Job
from simulator.transfers import NOT_FETCHED, Arriving, Left, Ways
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.model import StepCost
from tidepipe_common.settings.defaults import ROUTING_WITH_ROLES

TICK_S = 0.04
"""Retries of waiting requests; live, instances report with every step."""
FLOW_S = 0.1
"""So often the router is told who decodes, if it wants to know: its tick, live."""
HAND_OVER_TICK_S = 0.01
"""Where the router has sequences move: that long it takes at most to hear of a first token."""
MESSAGE_S = 0.002
"""From an instance to the router, and from there to another instance."""
PATIENCE_S = 3600.0
"""After the last arrival: a cluster where requests wait longer will never serve them."""


class VirtualInstance(Protocol):
    """What the cluster needs of an instance, whatever it is made of."""

    first_tokens: list[Job]
    ended: list[Job]
    left: list[Left]
    """Those that go on elsewhere."""
    arriving: list[Arriving]
    """Those whose blocks are to be fetched."""
    begun: list[Left]
    """Those that pass on and whose prompts are being computed, since when."""

    def __len__(self) -> int:
        """Requests that it has."""
        ...

    def submit(self, job: Job, now: float) -> None:
        """A request was sent here."""
        ...

    def advance(self, until: float) -> None:
        """Do everything that begins by then."""
        ...

    def leave(self, job: Job, now: float) -> None:
        """It is to go on elsewhere."""
        ...

    def decoding(self) -> list[tuple[Job, int]]:
        """All that decode, with their output tokens so far."""
        ...

    def release(self, job: Job, now: float) -> None:
        """Nobody fetches the blocks of one that left any more."""
        ...

    def receive(self, job: Job, giver: str, now: float) -> None:
        """A request comes from another instance, of that node."""
        ...

    def fetched(self, one: Arriving, seconds: float, now: float) -> None:
        """Its blocks are here."""
        ...

    def offer(self, job: Job, giver: str, now: float) -> None:
        """Its prompt is being computed at an instance of that node, and it is to go on here; `arriving` says
        what is fetched of its blocks meanwhile."""
        ...

    def lend(self, job: Job, now: float) -> int:
        """Keep what is here of a prompt's beginning for another instance: so many tokens."""
        ...

    def take_back(self, job: Job, now: float) -> None:
        """Nobody needs that any more."""
        ...

    def borrow(self, job: Job, tokens: int, giver: str, now: float) -> None:
        """A request, of whose beginning another instance, of that node, lends so much; `arriving` says what
        is to be fetched, if at all."""
        ...

    def drain(self) -> None:
        """Do all there is."""
        ...

    def status(self, now: float, *, slack: bool) -> InstanceReport:
        """A report; without slack where no policy asks for it."""
        ...


@dataclass(frozen=True, slots=True)
class ClusterRules:
    """router: its settings. report_s: how old a report may get. start_s: from asking for an instance to it.

    max_sequences: of one instance. shed: requests whose TTFT target cannot be kept are refused, as live.
    reuse: instances find what they have computed before. tells: and the router hears of it.
    """

    router: OverallConfig
    report_s: float = 0.04
    start_s: float = 0.0
    max_sequences: int = 4096
    shed: bool = False
    reuse: bool = True
    tells: bool = True

    @property
    def knows(self) -> bool:
        """Does the router look for what instances have computed?"""
        return self.reuse and self.tells and self.router.policy in FINDING


@dataclass(frozen=True, slots=True)
class ScalingNote:
    """time_s; what happened; instances per macro instance after it."""

    time_s: float
    what: str
    sizes: tuple[int, ...]


@dataclass(slots=True)
class ClusterLog:
    """The course of a run."""

    scaling: list[ScalingNote] = field(default_factory=list)
    roles: list[tuple[float, RoleMoved]] = field(default_factory=list)
    handed_over: int = 0
    pauses: list[float] = field(default_factory=list)
    """Seconds from leaving an instance to where blocks are at the next one, of each that was handed over."""
    ahead: int = 0
    """Prompts whose blocks went ahead."""
    borrowed: int = 0
    """Beginnings that were fetched from other instances."""
    instances: list[tuple[float, int]] = field(default_factory=list)


class VirtualCluster:
    """Deterministic: nothing here is random or reads a clock."""

    def __init__(
        self,
        rules: ClusterRules,
        make: Callable[[str, float], VirtualInstance],
        cost: StepCost,
        *,
        stages: int,
        context: int,
        step_tokens: int,
        ways: Ways | None = None,
        larger: tuple[int, int] = (0, 0),
    ) -> None:
        """make: an instance by name and birth. context: tokens of one sequence at most.

        step_tokens: of the instances' prefill steps. ways: between instances. larger: so many of the first
        instances have prefill steps of so many tokens instead.
        """
        self.log = ClusterLog()
        self._rules = rules
        self._make = make
        self._prefill = PrefillTime(cost, stages, step_tokens)
        self._larger = larger[0], PrefillTime(cost, stages, larger[1])
        self._context = context
        self._router = RoutingScheduler(rules.router)
        self._slack = rules.router.policy in BY_SLACK or rules.router.scaling is not None
        self._instances: dict[str, VirtualInstance] = {}
        self._draining: set[str] = set()
        self._starting: list[tuple[float, str]] = []
        self._reported: dict[str, float] = {}
        self._jobs: dict[str, Job] = {}
        self._coming: list[tuple[float, int, Job]] = []
        self._unasked = 0
        self._made = 0
        self._next_tick = 0.0
        self._flowed = 0.0
        self._ways = ways
        self._moves = ways is not None and rules.router.policy in ROUTING_WITH_ROLES
        self._later: list[tuple[float, int, Callable[[float], None]]] = []
        self._laters = itertools.count()
        self._placed: dict[str, Job] = {}
        self._sources: dict[Job, tuple[str, str]] = {}
        self._prompts = 0
        """Requests whose first token the router has not heard of."""
        self._left: dict[Job, float] = {}
        self._ahead: dict[Job, tuple[str, str, Arriving, float]] = {}

    @property
    def instances(self) -> Mapping[str, VirtualInstance]:
        """By their names."""
        return self._instances

    @property
    def macros(self) -> Sequence[MacroInstance]:
        """As the router has them."""
        return tuple(self._router.macros.values())

    def start(self, instances: int) -> None:
        """Instances that are there from the beginning."""
        for _ in range(instances):
            self._join(self._name(), 0.0)

    def run(self, jobs: Sequence[Job]) -> None:
        """Serve all; their times are written into them. A turn comes when the one before it has its answer.

        A turn that would come sooner than TICK_S after an answer may come as late as that.
        """
        for job in jobs:
            if job.prompt + job.output > self._context:
                raise ConfigError(
                    f"a request of {job.prompt} + {job.output} tokens is longer than an instance's "
                    f"{self._context}; leave such requests out"
                )
        later = {job.following for job in jobs if job.following is not None}
        self._coming = [(job.arrival, job.index, job) for job in jobs if job not in later]
        heapq.heapify(self._coming)
        self._unasked = len(later)
        # Nobody thinks for less: what has ended by a time says who comes until so much later.
        step = max(TICK_S, min((job.think_s for job in later), default=TICK_S))
        longest = max((job.think_s for job in later), default=0.0)
        now = known = 0.0
        while self._coming or (self._unasked and known < now + longest + PATIENCE_S):
            if self._unasked and not (self._coming and self._coming[0][0] <= known + step):
                known += step
                self._pass_time(known)
                self._ask(known)
                continue
            now, _, job = heapq.heappop(self._coming)
            self._arrive(job)
        until = now + PATIENCE_S
        while (len(self._router.pending) or self._moving) and now < until:
            now += TICK_S
            self._pass_time(now)
        if len(self._router.pending) or self._unasked:
            raise ConfigError(
                f"{len(self._router.pending)} requests still wait an hour after the last one came"
            )
        for instance in self._instances.values():
            instance.drain()

    def _arrive(self, job: Job) -> None:
        if self._rules.reuse and job.content:
            job.make_keys()
        self._pass_time(job.arrival)
        self._report(job.arrival)
        request = self._request(job)
        if self._rules.shed:
            request = replace(request, expires=job.arrival + WAIT_SHARE * job.slo.ttft_s, sheds=True)
        self._jobs[request.request_id] = job
        self._hear(RequestArrived(request), job.arrival)

    def _request(self, job: Job, generated: int = 0) -> RouteRequest:
        """As the router sees it, with so many tokens of its output."""
        return RouteRequest(
            f"r{job.index}", job.prompt + generated, job.output - generated, job.slo, job.arrival,
            prefix=job.prefix if self._rules.knows else (),
        )  # fmt: skip

    def _ask(self, now: float) -> None:
        """Whoever has an answer by now thinks about the next question."""
        for name, instance in self._instances.items():
            instance.advance(now)
            self._end(name, instance, now)

    def _end(self, name: str, instance: VirtualInstance, now: float, by: float | None = None) -> None:
        """Answers have ended: the router is told where it learns of it, and who asked thinks about the next
        question. by: until then; None: until now."""
        by = now if by is None else by
        told = [job for job in instance.ended if job.finished <= by]
        instance.ended[:] = [job for job in instance.ended if job.finished > by]
        for job in told:
            self._sources.pop(job, None)
            if self._moves or self._router.scaling is not None:
                self._hear(AnswerEnded(name, job.output, job.prompt), now)
            following = job.following
            if following is not None:
                following.arrival = max(job.finished + following.think_s, now)
                heapq.heappush(self._coming, (following.arrival, following.index, following))
                self._unasked -= 1

    # -- time ---------------------------------------------------------------------------------------

    def _pass_time(self, now: float) -> None:
        """Ticks up to now, where anything could come of them."""
        if self._moves:
            self._move(now)
            return
        self._pass_quiet_time(now)
        self._do_later(now)

    def _pass_quiet_time(self, now: float) -> None:
        """Without sequences that move."""
        busy = len(self._router.pending) > 0 or self._router.scaling is not None or self._starting
        if not busy:
            self._next_tick = now
            return
        every = TICK_S if len(self._router.pending) else 10 * TICK_S
        while self._next_tick <= now:
            at = self._next_tick
            self._do_later(at)
            while self._starting and self._starting[0][0] <= at:
                self._join(heapq.heappop(self._starting)[1], at)
            self._report(at)
            self._hear(Tick(), at)
            self._next_tick = at + every

    def _do_later(self, until: float) -> None:
        """What is due by then, in turn."""
        while self._later and self._later[0][0] <= until:
            when, _, do = heapq.heappop(self._later)
            do(when)

    def _report(self, now: float) -> None:
        for name, instance in list(self._instances.items()):
            if now - self._reported[name] < self._rules.report_s:
                continue
            self._reported[name] = now
            instance.advance(now)
            self._hear(InstanceReported(name, instance.status(now, slack=self._slack)), now)
            if self._router.scaling is not None and not self._moves:
                self._told(name, instance, now)
            if name in self._draining and not len(instance):
                self._leave(name, now)

    # -- sequences that move ------------------------------------------------------------------------

    @property
    def _moving(self) -> bool:
        """Is there anything left that may move? Nobody goes on elsewhere later than at its first token,
        unless the policy is told who decodes."""
        if not self._moves:
            return bool(self._later)
        may_move = self._prompts > 0 or bool(self._sources) or self._router.flows
        return bool(self._later) or (may_move and any(len(one) for one in self._instances.values()))

    def _move(self, now: float) -> None:
        """Time passes up to now, in steps in which first tokens are told and sequences move."""
        while self._next_tick <= now:
            at = self._next_tick
            self._do_later(at)
            while self._starting and self._starting[0][0] <= at:
                self._join(heapq.heappop(self._starting)[1], at)
            for name, instance in self._instances.items():
                instance.advance(at)
                told = instance.first_tokens or instance.ended or instance.left or instance.arriving
                if told or instance.begun:
                    self._told(name, instance, at)
            self._report(at)
            self._hear(Tick(self._decoding(at)), at)
            self._next_tick = at + HAND_OVER_TICK_S

    def _decoding(self, now: float) -> list[Decoding]:
        if not self._router.flows or now < self._flowed + FLOW_S:
            return []
        self._flowed = now
        return [
            Decoding(f"r{job.index}", name, tokens)
            for name, instance in self._instances.items()
            for job, tokens in instance.decoding()
        ]

    def _told(self, name: str, instance: VirtualInstance, now: float) -> None:
        """What an instance has told the router by now."""
        for since, job in [one for one in instance.begun if one.time_s <= now]:
            instance.begun.remove(Left(since, job))
            self._hear(PromptBegun(replace(self._request(job), giver=name), name), now)
        for job in [job for job in instance.first_tokens if job.first <= now]:
            instance.first_tokens.remove(job)
            self._prompts -= 1
            self._send_ahead(job, now)
            moves = self._moves and job.output > 1
            request = replace(self._request(job, 1), giver=name) if moves else None
            self._hear(FirstToken(job.first - job.arrival, request, name), now)
        self._end(name, instance, now)
        for time_s, job in instance.left:
            self._left[job] = time_s
            self._at(max(now, time_s) + MESSAGE_S, lambda at, job=job: self._go_on(job, name, at))  # type: ignore[misc]
        instance.left.clear()
        for one in instance.arriving:
            source, _ = self._sources.pop(one.job)
            self._fetch(name, one, source, now)
        instance.arriving.clear()

    def _at(self, time_s: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._later, (time_s, next(self._laters), do))

    def _go_on(self, job: Job, source: str, now: float) -> None:
        """A sequence has left an instance, and needs another one."""
        request = self._request(job, job.generated)
        _, wish = self._sources[job]
        self._hear(RequestWithdrawn(request.request_id, source), now)
        self._jobs[request.request_id] = job
        self.log.handed_over += 1
        request = replace(request, giver=source, brought=job.to_compute - 1, wish=wish)
        self._hear(RequestArrived(request), now)

    def _fetch(self, name: str, one: Arriving, source: str, now: float, *, lent: bool = False) -> None:
        """Its blocks are sent. lent: of its beginning only."""
        assert self._ways is not None, "nothing moves without"
        arrives = now
        if one.number != NOT_FETCHED and source != name:
            arrives = self._ways.send(number_of(source), number_of(name), one.nbytes, now)

        def fetched(at: float) -> None:
            if not lent and (left := self._left.pop(one.job, None)) is not None:
                self.log.pauses.append(at - left)
            if (giver := self._instances.get(source)) is not None:
                (giver.take_back if lent else giver.release)(one.job, at)
            instance = self._instances[name]
            instance.advance(at)
            instance.fetched(one, at - now, at)

        self._at(arrives + MESSAGE_S, fetched)

    def _offer(self, job: Job, source: str, name: str, now: float) -> None:
        """Its blocks go ahead to an instance; when they are there is known when all of them are computed."""
        taker = self._instances.get(name)
        if taker is None or job.first <= now:
            return
        taker.offer(job, self._node(source), now)
        for one in [one for one in taker.arriving if one.ahead]:
            taker.arriving.remove(one)
            self._ahead[job] = source, name, one, now

    def _send_ahead(self, job: Job, now: float) -> None:
        """Its prompt is done: what is left of its blocks is sent."""
        if (known := self._ahead.pop(job, None)) is None:
            return
        source, name, one, since = known
        assert self._ways is not None, "nothing moves without"
        beside_s = max(0.0, job.first - since)
        arrives = self._ways.send(number_of(source), number_of(name), one.nbytes, job.first, beside_s)
        self.log.ahead += 1

        def fetched(at: float) -> None:
            if (taker := self._instances.get(name)) is not None:
                taker.advance(at)
                taker.fetched(one, at - since, at)

        self._at(max(arrives, now) + MESSAGE_S, fetched)

    def _node(self, name: str) -> str:
        """Of an instance."""
        return "" if self._ways is None else self._ways.node(number_of(name))

    def _borrow(self, job: Job, lender: str, name: str, now: float) -> None:
        """It goes to an instance which fetches its beginning from another one, if that is still there."""
        giver, taker = self._instances.get(lender), self._instances[name]
        tokens = 0 if giver is None else giver.lend(job, now)
        if not tokens:
            taker.submit(job, now)
            return
        taker.borrow(job, tokens, self._node(lender), now)
        # Others that come to it may have become due meanwhile: they are not of this lender.
        for one in [one for one in taker.arriving if one.job is job]:
            taker.arriving.remove(one)
            self.log.borrowed += one.number != NOT_FETCHED
            # The lender is asked before.
            asked = now + 2 * MESSAGE_S
            self._fetch(name, one, lender, asked, lent=True)

    # -- what the router wants ----------------------------------------------------------------------

    def _hear(self, event: Event, now: float) -> None:
        for action in self._router.on(event, now):
            self._do(action, now)

    def _do(self, action: Action, now: float) -> None:
        match action:
            case Route(request, _, choice):
                job = self._jobs.pop(request.request_id)
                job.passes_on = action.passes_on
                assert choice.instance_id is not None
                self._prompts += not request.brought
                if request.brought:
                    giver, _ = self._sources[job]
                    self._instances[choice.instance_id].receive(job, self._node(giver), now)
                elif choice.lender and self._ways is not None:
                    self._borrow(job, choice.lender, choice.instance_id, now)
                else:
                    self._instances[choice.instance_id].submit(job, now)
                if self._moves:
                    self._placed[request.request_id] = job
            case HandOver(request_id, source, target):
                job = self._placed[request_id]
                self._sources[job] = source, target
                self._instances[source].leave(job, now)
            case FetchAhead(request_id, source, target):
                job = self._placed[request_id]
                offer = lambda at: self._offer(job, source, target, at)  # noqa: E731
                self._at(now + MESSAGE_S, offer)
            case RoleMoved():
                self.log.roles.append((now, action))
            case Expired(request) | QueueFull(request) | Shed(request) if self._rules.shed:
                self._refuse(self._jobs.pop(request.request_id), now)
            case AddInstance(reason, _, count):
                for _ in range(count):
                    heapq.heappush(self._starting, (now + self._rules.start_s, self._name()))
                self._hear(InstancesStarting(len(self._starting)), now)
                self._note(now, f"add {count}: {reason}")
            case DrainInstance(name, reason):
                self._draining.add(name)
                self._note(now, f"drain {name}: {reason}")
            case Regrouped(moves):
                if any(move.source and move.target for move in moves):
                    self._note(now, "split" if len(self._router.macros) > 1 else "merge")
            case _:
                raise ConfigError(f"the router's queue is too small for this run: {action}")

    def _refuse(self, job: Job, now: float) -> None:
        """Its conversation ends there."""
        job.refused = now
        following = job.following
        while following is not None:
            self._unasked -= 1
            following = following.following

    def _join(self, name: str, now: float) -> None:
        self._instances[name] = self._make(name, now)
        self._reported[name] = -1.0
        first, larger = self._larger
        prefill = larger if number_of(name) < first else self._prefill
        facts = InstanceFacts(name, prefill, self._context, self._rules.max_sequences)
        self._hear(InstanceJoined(facts), now)
        self._hear(InstancesStarting(len(self._starting)), now)
        self.log.instances.append((now, len(self._instances)))

    def _leave(self, name: str, now: float) -> None:
        self._draining.discard(name)
        # It is empty, and tells the rest of what it did.
        self._end(name, self._instances[name], now, by=inf)
        del self._instances[name]
        self._hear(InstanceLeft(name), now)
        self.log.instances.append((now, len(self._instances)))

    def _note(self, now: float, what: str) -> None:
        sizes = tuple(len(macro) for macro in self._router.macros.values())
        self.log.scaling.append(ScalingNote(now, what, sizes))

    def _name(self) -> str:
        self._made += 1
        return f"i{self._made - 1}"


def number_of(name: str) -> int:
    """Which it was of all that were made: so they are placed on nodes."""
    return int(name.removeprefix("i"))
