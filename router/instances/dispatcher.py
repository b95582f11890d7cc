"""The driver of the routing scheduler: sequences and reports in, hand-overs to instances out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from router.instances.directory import InstanceDirectory
from router.instances.link import InstanceLink
from router.instances.sequence import Placement, RoutedSequence, Source, Stay
from router.scheduler.choice import Choice
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
from router.scheduler.policies.catalog import SHEDDING
from router.scheduler.request import Decoding, RouteRequest
from router.scheduler.routing_scheduler import RoutingScheduler
from router.scheduler.shedding import WAIT_SHARE
from router.scheduler.slo import SloClasses, SloTarget
from tidepipe_common.errors import InvalidRequestError, OverloadedError, TidePipeError, UnavailableError
from tidepipe_common.notifier import Notifier
from tidepipe_common.telemetry.traces import NO_TRACES, Traces
from tidepipe_common.types.kv_transfer import KvHandle
from tidepipe_common.types.needs import CONTINUED_STRUCTURES, FIELDS, is_adapter, needs_of, said

TICK_S = 0.1
BOUNCE_PAUSE_S = 0.25
"""After a refusal for want of room: by then a report says how full the instance is."""

DESERTED = (
    "all instances of this service have been stopped or drained; it answers again when its operator starts "
    "some (`tidepipe admin scale set N`), or takes them back (`tidepipe admin drain INSTANCE --resume`)"
)

NOWHERE_S = 0.1
"""While there is no instance, waiting sequences are looked at so often."""

DOWN_S = 3.0
"""An instance whose stages have been down for longer is left by what it has, if there is another: longer than
links take to heal. Nothing of worth is left behind: KV blocks went with the stages."""

ScalingWish = AddInstance | DrainInstance

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WaitingRules:
    """slos: targets of those that bring none. patience_s: how long to wait while there is no instance."""

    slos: SloClasses
    patience_s: float

    def sheds(self, sequence: RoutedSequence, policy: str) -> bool:
        """May it be refused for being late? What an instance has had is finished, however late."""
        if sequence.background:
            return False
        return policy in SHEDDING and not sequence.output and not sequence.has_moved

    def request(
        self,
        sequence: RoutedSequence,
        policy: str,
        now: float,
        *,
        nowhere: bool,
        giver: str = "",
        brought: int = 0,
        wish: str = "",
    ) -> RouteRequest:
        """nowhere: there is no instance at all. giver, brought, wish: see RouteRequest."""
        slo = self.slos.resolve(None, sequence.ttft_s, sequence.tpot_s)
        produced, limit = len(sequence.output), sequence.sampling.max_tokens
        expires = now + (min(self.patience_s, NOWHERE_S) if nowhere else self.patience_s)
        if sheds := self.sheds(sequence, policy):
            expires = max(now, sequence.arrived + WAIT_SHARE * slo.ttft_s)
        return RouteRequest(
            request_id=sequence.key,
            prompt_tokens=len(sequence.prompt) + produced,
            max_tokens=0 if limit is None else max(1, limit - produced),
            slo=slo,
            arrived=sequence.arrived,
            expires=expires,
            sheds=sheds,
            tenant=sequence.tenant,
            priority=sequence.priority,
            background=sequence.background,
            prefix=sequence.prefix.keys,
            needs=_needs(sequence),
            giver=giver,
            brought=brought,
            wish=wish,
        )


def _needs(sequence: RoutedSequence) -> frozenset[str]:
    return needs_of(sequence.sampling, begun=bool(sequence.output), adapter=sequence.adapter)


def _can_do(link: InstanceLink, sequence: RoutedSequence) -> bool:
    longest = len(sequence.prompt) + (sequence.sampling.max_tokens or 0)
    return not link.lacking(_needs(sequence)) and longest <= link.context_length


class Dispatcher:
    """Owns every sequence from its submission to its end; links own only stays.

    Where a sequence goes is the routing core's decision. Its pending queue is bounded and ordered by what is
    due first, so what an instance gives back goes on in its old place.
    """

    def __init__(
        self,
        scheduler: RoutingScheduler,
        rules: WaitingRules,
        name_stay: Callable[[RoutedSequence], str],
        clock: Callable[[], float],
        changed: Notifier | None = None,
        traces: Traces = NO_TRACES,
        *,
        what: str = "",
    ) -> None:
        """name_stay: a new, unique id for a stay at an instance. what: its instances serve, for people.

        changed: beats when instances come and go or a sequence ends; shared by several dispatchers.
        """
        self.changed = changed or Notifier()
        self._of = f" of {what}" if what else ""
        self.moved = 0
        self.scheduler = scheduler
        self.on_scaling: Callable[[ScalingWish], None] = lambda wish: None
        self.deserted: Callable[[], bool] = lambda: False
        """True while nobody wants any instance: then there is nothing to wait for."""
        self.directory = InstanceDirectory(scheduler, self.handle, self.changed)
        self._name_stay = name_stay
        self._clock = clock
        self._rules = rules
        self._traces = traces
        self.moved_with_blocks = 0
        self._sources: dict[str, Source] = {}
        self._wishes: dict[str, str] = {}
        self._pending: dict[str, RoutedSequence] = {}
        self._placed: dict[str, tuple[InstanceLink, Placement]] = {}
        self._bounced: list[tuple[float, RoutedSequence]] = []
        self._unable_since: dict[str, float] = {}
        self._last_open = clock()

    @property
    def busy(self) -> bool:
        """Has it a sequence that waits, or that an instance has?"""
        return bool(self._pending or self._placed)

    def promise(self, target: SloTarget) -> None:
        """Targets of sequences that bring none, from now on."""
        self._rules = replace(self._rules, slos=SloClasses({"default": target}, "default"))

    # -- sequences ----------------------------------------------------------------------------------

    def submit(self, sequence: RoutedSequence) -> None:
        """Find an instance for a new sequence."""
        if sequence.finished:
            return
        if self.deserted() and not self.directory.anyone:
            sequence.fail(UnavailableError(DESERTED))
        else:
            self._arrive(sequence)

    def withdraw(self, sequence: RoutedSequence) -> None:
        """The sequence has ended here; wherever it is, it must not run on."""
        key = sequence.key
        if self._pending.get(key) is sequence:
            del self._pending[key]
            self._unable_since.pop(key, None)
            self._forget_source(key)
            self.handle(RequestWithdrawn(key))
        entry = self._placed.get(key)
        if entry is not None and entry[1].sequence is sequence:
            link, placement = self._placed.pop(key)
            self._forget_source(key)
            link.withdraw(placement)
            self.handle(RequestWithdrawn(key, link.instance_id))

    def is_pending(self, sequence: RoutedSequence) -> bool:
        """True while it waits for an instance."""
        return self._pending.get(sequence.key) is sequence

    def why_waiting(self, sequence: RoutedSequence) -> Choice | None:
        """Why a pending sequence was not sent anywhere yet."""
        return self.scheduler.why_waiting(sequence.key)

    def first_token(self, placement: Placement) -> None:
        """A sequence has got its first token: the router may have it go on elsewhere."""
        sequence, now = placement.sequence, self._clock()
        entry = self._placed.get(sequence.key)
        whole = len(sequence.output) >= (sequence.sampling.max_tokens or math.inf)
        if whole or entry is None or not entry[0].hands_over or sequence.sampling.reads_prompt:
            self.handle(FirstToken(now - sequence.arrived))
            return
        name = entry[0].instance_id
        policy = self.scheduler.policy_name
        request = self._rules.request(sequence, policy, now, nowhere=False, giver=name)
        self.handle(FirstToken(now - sequence.arrived, request, name))

    def announced(self, placement: Placement, handle: KvHandle) -> None:
        """The prompt of a sequence is being computed: the router may have its blocks go ahead."""
        sequence, now = placement.sequence, self._clock()
        entry = self._placed.get(sequence.key)
        if entry is None or entry[1] is not placement:
            return
        name, policy = entry[0].instance_id, self.scheduler.policy_name
        placement.announced = replace(handle, giver=name)
        request = self._rules.request(sequence, policy, now, nowhere=False, giver=name)
        self.handle(PromptBegun(request, name))

    def _fetch_ahead(self, action: FetchAhead) -> None:
        """The core wants it."""
        entry, target = self._placed.get(action.request_id), self.directory[action.target]
        if entry is None or entry[1].announced is None:
            return
        log.debug("blocks go ahead", sequence=action.request_id, source=action.source, target=action.target)
        target.fetch_ahead(entry[1], entry[1].announced)

    def ended(self, placement: Placement, error: TidePipeError | None) -> None:
        """A stay is over, and with it the sequence. error: it can run nowhere."""
        self._wishes.pop(placement.sequence.key, None)
        if error is not None:
            self._leave(placement)
            placement.sequence.fail(error)
            return
        sequence = placement.sequence
        entry = self._placed.pop(sequence.key, None)
        if entry is not None and (tokens := len(sequence.output)):
            self.handle(AnswerEnded(entry[0].instance_id, tokens, len(sequence.prompt)))
        self.changed.notify_all()

    def give_back(self, placements: Sequence[Placement], reason: str) -> None:
        """These stays are over and their sequences need another; what had begun there is lost."""
        self.moved += len(placements)
        log.info("sequences came back", count=len(placements), reason=reason)
        for placement in placements:
            sequence = placement.sequence
            self._leave(placement)
            if placement.stay is Stay.QUEUED:
                self._pending[sequence.key] = sequence
                self._bounced.append((self._clock() + BOUNCE_PAUSE_S, sequence))
            elif sequence.moved():
                self._arrive(sequence)

    def evacuate(self, link: InstanceLink, reason: str) -> int:
        """Have all that an instance has go on elsewhere, if there is another one; how many sequences do."""
        if not any(other.open for other in self.directory if other is not link):
            return 0
        placements = list(link.placements)
        count = link.hand_over(placements)
        log.info(
            "sequences go on elsewhere",
            instance=link.instance_id,
            count=count,
            of=len(placements),
            reason=reason,
        )
        return count

    def _leave_dead_stages(self, link: InstanceLink) -> None:
        """What it has and others can do goes on there; those that have no room yet are waited for in line, by
        the side of this one."""
        others = [other for other in self.directory if other is not link and other.open and other.serving]
        leaving = [
            placement
            for placement in link.placements
            if any(_can_do(other, placement.sequence) for other in others)
        ]
        if leaving:
            link.take_back(leaving, f"stages of {link.instance_id} have been down for {link.down_s:.1f} s")

    def handed_over(self, placement: Placement, source: Source) -> None:
        """A stay is over because we wanted it to be; its sequence goes on from where it is."""
        sequence = placement.sequence
        self._leave(placement)
        if source.handle.ticket:
            self.moved_with_blocks += 1
            self._sources[sequence.key] = source
        log.info(
            "handed over",
            sequence=sequence.key,
            instance=source.instance_id,
            tokens=source.handle.computed,
            reason=source.handle.reason,
        )
        self._arrive(sequence)

    def _forget_source(self, key: str) -> None:
        """Nothing comes of its hand-over any more."""
        self._wishes.pop(key, None)
        if (source := self._sources.pop(key, None)) is not None:
            source.release()

    def _hand_over(self, action: HandOver) -> None:
        """The core wants it; whoever has ended meanwhile stays ended."""
        entry = self._placed.get(action.request_id)
        if entry is None or entry[0].instance_id != action.source:
            return
        link, placement = entry
        log.info(
            "to be handed over",
            sequence=action.request_id,
            instance=action.source,
            target=action.target,
            reason=action.reason,
            numbers=dict(action.numbers),
        )
        if link.hand_over([placement]) and action.target:
            self._wishes[action.request_id] = action.target

    async def run(self) -> None:
        """Keep the core's time until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            now = self._clock()
            if self.directory.anyone:
                self._last_open = now
            rested = [sequence for until, sequence in self._bounced if until <= now]
            self._bounced = [entry for entry in self._bounced if entry[0] > now]
            for sequence in rested:
                if self.is_pending(sequence):
                    self._arrive(sequence)
            for link in self.directory:
                if link.down_s >= DOWN_S:
                    self._leave_dead_stages(link)
            if self.directory.uneven and self.directory.anyone:
                self._take_aside(now)
            self.handle(Tick(self._decoding()))

    def _decoding(self) -> list[Decoding]:
        """All that have begun where they could go on elsewhere, if the core wants to know."""
        if not self.scheduler.flows:
            return []
        return [
            Decoding(key, link.instance_id, len(placement.sequence.output))
            for key, (link, placement) in self._placed.items()
            if link.hands_over and placement.sequence.output and not placement.sequence.sampling.reads_prompt
        ]

    def _take_aside(self, now: float) -> None:
        """Those in line who could go when they came, and cannot now."""
        resting = {sequence.key for _, sequence in self._bounced}
        for key, sequence in list(self._pending.items()):
            if key not in resting and self.directory.lacking(_needs(sequence), now=True):
                self.handle(RequestWithdrawn(key))
                self._wait_for_an_able_one(sequence, now)

    # -- the core -----------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Tell the core, and do what it says. Events by hand raise ConfigError or NotFoundError."""
        for action in self.scheduler.on(event, self._clock()):
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case Route():
                self._place(action)
            case QueueFull():
                self._queue_full(action)
            case Expired():
                self._expired(action)
            case Shed():
                text = f"{action.ahead} requests wait already: its turn would come in {action.wait_s:.1f} s"
                self._refuse(action.request, f"{text}, too late for its target", action.wait_s)
            case Regrouped():
                for move in action.moves:
                    log.info(
                        "instance changed hands",
                        instance=move.instance_id,
                        source=move.source,
                        target=move.target,
                    )
                self.changed.notify_all()
            case HandOver():
                self._hand_over(action)
            case FetchAhead():
                self._fetch_ahead(action)
            case RoleMoved(name, role):
                log.info(
                    "another share of prefill",
                    instance=name,
                    share=role.share,
                    reason=role.reason,
                    numbers=dict(role.numbers),
                )
                self.changed.notify_all()
            case AddInstance() | DrainInstance():
                self.on_scaling(action)

    def _arrive(self, sequence: RoutedSequence) -> None:
        self._pending[sequence.key] = sequence
        policy, now = self.scheduler.policy_name, self._clock()
        nowhere = not self.directory.anyone
        if not nowhere and self.directory.lacking(_needs(sequence), now=True):
            self._wait_for_an_able_one(sequence, now)
            return
        self._unable_since.pop(sequence.key, None)
        source = self._sources.get(sequence.key)
        request = self._rules.request(
            sequence,
            policy,
            now,
            nowhere=nowhere,
            giver="" if source is None else source.instance_id,
            brought=0 if source is None else source.handle.computed,
            wish=self._wishes.get(sequence.key, ""),
        )
        self.handle(RequestArrived(request))

    def _wait_for_an_able_one(self, sequence: RoutedSequence, now: float) -> None:
        """Beside the line, in which those behind it can go: whoever can do what it needs is away for now.

        If nobody ever could, it is refused, unless somebody had it already, who may come back.
        """
        needs, key = _needs(sequence), sequence.key
        since = self._unable_since.setdefault(key, now)
        begun = bool(sequence.output) or sequence.has_moved
        error: TidePipeError | None = None
        # An adapter that requests may name is away and no more.
        lacking = {one for one in self.directory.lacking(needs, now=False) if not is_adapter(one)}
        if CONTINUED_STRUCTURES in lacking:
            error = UnavailableError(
                "a server broke off an answer that is held to a structure, and nobody here can go on with "
                "it: send the request again"
            )
        elif lacking and not begun:
            name = min(lacking)
            error = InvalidRequestError(
                f"no instance here does this for a request: {said(lacking)}", FIELDS.get(name, name)
            )
        elif now - since >= self._rules.patience_s:
            away = said(self.directory.lacking(needs, now=True))
            error = UnavailableError(f"no instance with {away} was there for {self._rules.patience_s:g} s")
        if error is None:
            self._bounced.append((now + BOUNCE_PAUSE_S, sequence))
            return
        del self._pending[key], self._unable_since[key]
        self._forget_source(key)
        sequence.fail(error)

    def _place(self, action: Route) -> None:
        choice = action.choice
        assert choice.instance_id is not None, "a route leads somewhere"
        key = action.request.request_id
        sequence = self._pending.pop(key, None)
        if sequence is None:  # it ended while the core's other wishes were carried out
            self.handle(RequestWithdrawn(key, choice.instance_id))
            return
        link = self.directory[choice.instance_id]
        log.debug(
            "routed",
            sequence=sequence.key,
            macro=action.macro_id,
            instance=choice.instance_id,
            reason=choice.reason,
            numbers=dict(choice.numbers),
        )
        self._wishes.pop(key, None)
        placement = Placement(
            self._name_stay(sequence), sequence, slo=action.request.slo, source=self._sources.pop(key, None)
        )
        placement.passes_on = action.passes_on and link.hands_over and not sequence.sampling.reads_prompt
        if choice.lender and placement.source is None:
            placement.ask = self.directory[choice.lender].lend
        if sequence.trace_context:
            placement.span = self._traces.begin(
                f"run on {choice.instance_id}",
                sequence.trace_context,
                {
                    "tidepipe.instance": choice.instance_id,
                    "tidepipe.macro_instance": action.macro_id,
                    "tidepipe.routing.reason": choice.reason,
                    "tidepipe.since_arrival_s": self._clock() - sequence.arrived,
                    "tidepipe.output_tokens_before": len(sequence.output),
                },
                "client",
            )
        self._placed[key] = (link, placement)
        link.place(placement)

    def _leave(self, placement: Placement) -> None:
        """A stay is over before its end."""
        key = placement.sequence.key
        if (entry := self._placed.get(key)) is not None and entry[1] is placement:
            del self._placed[key]
            self.handle(RequestWithdrawn(key, entry[0].instance_id))

    def _queue_full(self, action: QueueFull) -> None:
        sequence = self._pending.get(action.request.request_id)
        if sequence is not None and (sequence.output or sequence.has_moved):
            # It was accepted before: whatever comes, it is not refused now.
            self._bounced.append((self._clock() + BOUNCE_PAUSE_S, sequence))
            return
        text = f"{action.pending} requests wait for an instance already, as many as may"
        self._refuse(action.request, text, action.retry_after_s)

    def _expired(self, action: Expired) -> None:
        now, key = self._clock(), action.request.request_id
        sequence = self._pending.get(key)
        if sequence is None:
            return
        longest = self.directory.longest
        if longest >= action.request.longest and not self._rules.sheds(sequence, self.scheduler.policy_name):
            self._arrive(sequence)  # its turn will come: there is an instance that can take it
        elif longest:
            waited = now - action.request.arrived
            text = f"no instance could take the request within {waited:.1f} s: {action.choice.reason}"
            self._refuse(action.request, text, waited)
        elif self.deserted():
            del self._pending[key]
            self._forget_source(key)
            sequence.fail(UnavailableError(DESERTED))
        elif now - max(action.request.arrived, self._last_open) < self._rules.patience_s:
            self._arrive(sequence)
        else:
            del self._pending[key]
            self._forget_source(key)
            sequence.fail(
                UnavailableError(
                    f"no instance{self._of} that can take the request was there for "
                    f"{self._rules.patience_s:g} s; "
                    "check that a controller is running and registered with this router"
                )
            )

    def _refuse(self, request: RouteRequest, reason: str, retry_after_s: float) -> None:
        sequence = self._pending.pop(request.request_id, None)
        self._forget_source(request.request_id)
        if sequence is None:
            return
        retry_ms = math.ceil(1000 * max(retry_after_s, 0.1))
        sequence.fail(OverloadedError(f"{reason}; come again in {retry_ms / 1000:.1f} s", retry_ms))
