"""The overall scheduler: macro instances, the requests that wait for them, and their number.

    actions = scheduler.on(event, now)

Pure: same events, same actions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from router.scheduler.bearing import modelled
from router.scheduler.choice import Choice, RoutingPolicy
from router.scheduler.demand import Demand
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
    InstanceDraining,
    InstanceJoined,
    InstanceLeft,
    InstanceReconnected,
    InstanceReported,
    InstanceResumed,
    InstancesStarting,
    MergeMacros,
    MoveInstance,
    PromptBegun,
    QueueFull,
    Regrouped,
    RequestArrived,
    RequestWithdrawn,
    RoleMoved,
    Route,
    SetPolicy,
    SetScaling,
    SplitMacro,
    Tick,
)
from router.scheduler.instance_report import FOREVER
from router.scheduler.macro import MacroInstance
from router.scheduler.mitosis import Bounds, Mitosis, Move
from router.scheduler.pending import PendingQueue, PendingRoom
from router.scheduler.policies.catalog import FINDING, FLOWING, make_routing_policy
from router.scheduler.policies.moving import Asked, MovingPolicy
from router.scheduler.request import Decoding, RouteRequest
from router.scheduler.roles import EVERYBODY
from router.scheduler.scaling import AutoScaling, ScalingRules
from router.scheduler.shedding import ServiceRate, hopeless, last_chance
from router.scheduler.taking_over import take_over
from router.scheduler.view import InstanceView
from tidepipe_common.settings.defaults import ROUTING_WITH_ROLES

HELD_S = 1.0
"""What instances have is looked at so often."""
ASKED = 4
"""Instances whose costs are asked for what one of them bears: they are nearly alike."""
RETRY_S = 0.01
"""Pending requests are not offered again before that, but with every tick."""


@dataclass(frozen=True, slots=True)
class OverallConfig:
    """policy: name of the routing policy. max_pending: requests that may wait.

    tries: requests from the queue's front that are offered to the instances each time; more than one lets
        short prompts pass a long one that fits nowhere yet.
    scaling: rules of automatic scaling; None leaves it to people.
    prefill_instances: under the policies `roles` and `arrow`, so many compute prompts and nothing else, for
        good or to begin with; 0: by itself.
    knobs: of the policy, what differs from its defaults.
    """

    policy: str = "padg"
    bounds: Bounds = field(default_factory=Bounds)
    max_pending: int = 1024
    tries: int = 4
    scaling: ScalingRules | None = None
    prefill_instances: int = 0
    knobs: Mapping[str, float] = field(default_factory=dict)


class SharedRoom:
    """What the schedulers of a router's models have in common, which else know nothing of each other: room
    for requests that wait, and the names of macro instances."""

    def __init__(self, max_pending: int) -> None:
        self.pending = PendingRoom(max_pending)
        self.macro_numbers = itertools.count(1)


class RoutingScheduler:
    """Where requests for one model go, and how many instances of it there are in which macro instance."""

    def __init__(self, config: OverallConfig, shared: SharedRoom | None = None) -> None:
        """shared: with those of other models; None: it is the only one."""
        shared = shared or SharedRoom(config.max_pending)
        self.config = config
        self.policy_name = config.policy
        make_routing_policy(config.policy, config.prefill_instances)  # what is wrong is told now
        self.mitosis = Mitosis(config.bounds, shared.macro_numbers)
        self.pending = PendingQueue(shared.pending)
        self.macros: dict[str, MacroInstance] = {}
        self.demand = Demand()
        self._held = -HELD_S
        self.scaling = AutoScaling(config.scaling, self.demand) if config.scaling else None
        self.starting = 0
        self._waits: dict[str, Choice] = {}
        self._actions: list[Action] = []
        self._retried = -RETRY_S
        self._rate = ServiceRate()

    def on(self, event: Event, now: float) -> list[Action]:
        """Take note of what happened, and decide. `now`: seconds on a steady clock, never falling.

        Events by hand raise ConfigError or NotFoundError and change nothing if they cannot be.
        """
        match event:
            case RequestArrived():
                self.demand.arrived(event.request, now)
                self._arrived(event.request, now)
            case InstanceReported():
                if view := self.view(event.instance_id):
                    view.handle(event.status)
                    # Many reports come at a time, and each retry asks all instances.
                    if now - self._retried >= RETRY_S:
                        self._retry(now)
            case Tick():
                self._tick(event.decoding, now)
            case FirstToken():
                if self.scaling is not None:
                    self.scaling.first_token(event.ttft_s, now)
                self._prompt_done(event, now)
            case PromptBegun():
                self._prompt_begun(event, now)
            case AnswerEnded():
                self.demand.ended(event.prompt_tokens, event.output_tokens)
            case RequestWithdrawn():
                self._withdrawn(event)
            case InstanceJoined():
                if self.scaling is not None:
                    self.scaling.starts.joined(now)
                self._joined(InstanceView(event.facts))
            case InstanceReconnected():
                if view := self.view(event.instance_id):
                    view.reconnect()
            case InstanceDraining():
                self._drain(event.instance_id)
            case InstanceResumed():
                if view := self.view(event.instance_id):
                    view.draining = False
                    self._regroup(self.mitosis.resume(event.instance_id))
            case InstancesStarting():
                self.starting = event.count
                if self.scaling is not None:
                    self.scaling.starts.under_way(event.count)
            case InstanceLeft():
                if self.view(event.instance_id):
                    self._regroup(self.mitosis.remove(event.instance_id))
            case SplitMacro():
                self._regroup(self.mitosis.split(event.macro_id, event.count))
            case MergeMacros():
                self._regroup(self.mitosis.merge(event.into, event.other))
            case MoveInstance():
                self._regroup(self.mitosis.move(event.instance_id, event.target))
            case SetPolicy():
                self._set_policy(event.name)
                self._rate = ServiceRate()
            case SetScaling():
                self.scaling = AutoScaling(event.rules, self.demand) if event.rules else None
        actions, self._actions = self._actions, []
        return actions

    def view(self, instance_id: str) -> InstanceView | None:
        """What is known of an instance; None if there is none of that name."""
        macro = self._macro_of(instance_id)
        return None if macro is None else macro.view(instance_id)

    def _macro_of(self, instance_id: str) -> MacroInstance | None:
        return next((macro for macro in self.macros.values() if instance_id in macro), None)

    @property
    def flows(self) -> bool:
        """Does its policy want to know with each tick who decodes?"""
        return self.policy_name in FLOWING

    def why_waiting(self, request_id: str) -> Choice | None:
        """Why a pending request was not sent anywhere yet."""
        return self._waits.get(request_id)

    # -- requests -----------------------------------------------------------------------------------

    def _arrived(self, request: RouteRequest, now: float) -> None:
        waiting = len(self.pending)
        if request.brought and self._take_over(request, now):
            return
        # Nobody overtakes those in line unless they could not go anyway.
        if waiting < (1 if request.background else self.config.tries) and self._route(request, now):
            return
        if self.pending.full_for(request.tenant):
            self._waits.pop(request.request_id, None)
            retry = max(1.0, self.pending.oldest_wait(now))
            self._actions.append(QueueFull(request, waiting, retry))
            self._refused(now)
            return
        self.pending.add(request)
        if not waiting:
            self._rate.waiting(True, now)

    def _route(self, request: RouteRequest, now: float) -> bool:
        """Offer it to the macro instances, the least loaded first, or the one where its beginning is."""
        wait = Choice(None, "there is no instance", {})
        for macro in self._in_order(request):
            choice = macro.route(request, now)
            if choice.instance_id is not None:
                passes_on = macro.passes_on(request, choice.instance_id)
                self._goes(request, macro, choice, passes_on=passes_on)
                return True
            wait = choice
        self._waits[request.request_id] = wait
        return False

    def _goes(
        self, request: RouteRequest, macro: MacroInstance, choice: Choice, *, passes_on: bool = False
    ) -> None:
        """It was its turn, and its tenant's."""
        self._waits.pop(request.request_id, None)
        self._actions.append(Route(request, macro.macro_id, choice, passes_on))
        self.pending.served(request)
        self.demand.sent(request.prompt_tokens, int(choice.numbers.get("cached_tokens", 0)))

    def _take_over(self, request: RouteRequest, now: float) -> bool:
        """It has had its turn, and an instance: nobody in line is before it."""
        choice = take_over(request, (view for macro in self.macros.values() for view in macro.views))
        if choice is None or choice.instance_id is None:
            return False
        macro = next(one for one in self.macros.values() if choice.instance_id in one)
        macro.send(request, choice.instance_id, now)
        self._waits.pop(request.request_id, None)
        self._actions.append(Route(request, macro.macro_id, choice))
        return True

    def _prompt_begun(self, event: PromptBegun, now: float) -> None:
        """Its blocks may go ahead to where it is to go on."""
        macro = self._macro_of(event.instance_id)
        if macro is None or macro.moving is None:
            return
        source, name = macro.view(event.instance_id), event.request.request_id
        assert source is not None, "it is one of its instances"
        choice = macro.moving.prompt_begun(event.request, source, macro.views, now)
        if choice is not None and choice.instance_id is not None:
            action = FetchAhead(name, source.instance_id, choice.instance_id, choice.numbers)
            self._actions.append(action)

    def _prompt_done(self, event: FirstToken, now: float) -> None:
        """It may go on elsewhere, if its macro instance's policy knows of roles."""
        macro = self._macro_of(event.instance_id)
        if macro is None or macro.moving is None or event.request is None:
            return
        source = macro.view(event.instance_id)
        assert source is not None, "it is one of its instances"
        choice = macro.moving.first_token(event.request, source, macro.views, now)
        if choice is not None:
            self._hand_over(event.request.request_id, source.instance_id, choice)

    def _hand_over(self, request_id: str, source: str, choice: Choice) -> None:
        if choice.instance_id is not None:
            action = HandOver(request_id, source, choice.instance_id, choice.reason, choice.numbers)
            self._actions.append(action)

    def _in_order(self, request: RouteRequest) -> list[MacroInstance]:
        macros = list(self.macros.values())
        if len(macros) > 1:
            macros.sort(key=lambda macro: macro.load)
            if request.prefix and self.policy_name in FINDING:
                self._put_first_who_has_it(request, macros)
        return macros

    @staticmethod
    def _put_first_who_has_it(request: RouteRequest, macros: list[MacroInstance]) -> None:
        """If it costs less there than anywhere in the least loaded one, by predicted time of all."""
        first = macros[0]
        known = max((view.cached_tokens(request) for view in first.views), default=0)
        hits = [
            (view.cost_s(request), place)
            for place, macro in enumerate(macros)
            for view in macro.views
            if view.ready and macro is not first and view.cached_tokens(request) > known
        ]
        if hits:
            cost_s, place = min(hits)
            if cost_s < min((view.cost_s(request) for view in first.views if view.ready), default=FOREVER):
                macros.insert(0, macros.pop(place))

    def _retry(self, now: float) -> None:
        self._retried = now
        progress = bool(len(self.pending))
        while progress:
            progress = False
            for request in self.pending.ahead(self.config.tries):
                if (request.brought and self._take_over(request, now)) or self._route(request, now):
                    self.pending.discard(request.request_id)
                    self._rate.served(now)
                    progress = True
        self._watch_rate(now)

    def _watch_rate(self, now: float) -> None:
        """Time counts while somebody waits for instances that are there."""
        ready = any(view.ready for macro in self.macros.values() for view in macro.views)
        self._rate.waiting(bool(len(self.pending)) and ready, now)

    def _withdrawn(self, event: RequestWithdrawn) -> None:
        self._waits.pop(event.request_id, None)
        self.pending.discard(event.request_id)
        for macro in self.macros.values():
            if macro.moving is not None:
                macro.moving.forget(event.request_id, here=not event.instance_id)
        if event.instance_id and (view := self.view(event.instance_id)):
            view.forget(event.request_id)

    def _tick(self, decoding: Sequence[Decoding], now: float) -> None:
        expired = self.pending.expired(now)
        if len(expired) == 1 and not len(self.pending) and self._last_chance(expired[0], now):
            expired.clear()
        for request in expired:
            choice = self._waits.pop(request.request_id, Choice(None, "it was never its turn", {}))
            self._actions.append(Expired(request, choice))
            self._refused(now)
        self._retry(now)
        self._shed(now)
        self._meter(now)
        for macro in self.macros.values():
            if (moving := macro.moving) is not None:
                moving.asked = Asked(self.demand.mix(self._part(macro)), self.demand.output)
                self._actions += [RoleMoved(name, role) for name, role in moving.look(macro.views, now)]
                here = [one for one in decoding if one.instance_id in macro]
                for one, choice in moving.flow(here, macro.views, now) if here else ():
                    self._hand_over(one.request_id, one.instance_id, choice)
        if self.scaling is not None:
            self._scale(self.scaling, now)

    def _meter(self, now: float) -> None:
        """Once a second: what instances have, and what they expect."""
        self.demand.pass_time(now)
        if now - self._held < HELD_S:
            return
        self._held = now
        views = [view for macro in self.macros.values() for view in macro.views]
        sequences = sum(view.sequences for view in views if view.expected_output)
        expected = sum(view.sequences * view.expected_output for view in views)
        self.demand.held(sum(view.tokens for view in views), sequences, expected / max(1, sequences))

    def _part(self, macro: MacroInstance) -> float:
        """Of all requests, that go to a macro instance."""
        return len(macro) / max(1, sum(map(len, self.macros.values())))

    def _last_chance(self, request: RouteRequest, now: float) -> bool:
        if not request.sheds:
            return False
        views = [view for macro in self.macros.values() for view in macro.views]
        if (chosen := last_chance(request, views, now)) is None:
            return False
        macro = next(one for one in self.macros.values() if chosen.instance_id in one)
        cached = chosen.cached_tokens(request)
        macro.send(request, chosen.instance_id, now)
        reason = "nobody else waits, and it would be refused"
        numbers = {"until_resume_s": chosen.slack.low_latest - now, "cached_tokens": cached}
        self._goes(request, macro, Choice(chosen.instance_id, reason, numbers))
        return True

    def _shed(self, now: float) -> None:
        """Refuse those whose time will be over before it is their turn."""
        rate = self._rate.per_s
        if rate is None:
            return
        line = self.pending.ahead(len(self.pending))
        for refusal in hopeless(line, rate, now):
            self.pending.discard(refusal.request.request_id)
            self._waits.pop(refusal.request.request_id, None)
            self._actions.append(refusal)
            self._refused(now)

    def _refused(self, now: float) -> None:
        if self.scaling is not None:
            self.scaling.refused(now)

    # -- instances ----------------------------------------------------------------------------------

    def _joined(self, view: InstanceView) -> None:
        moves = self.mitosis.add(view.instance_id)
        self._regroup(moves, view)

    def _regroup(self, moves: list[Move], joining: InstanceView | None = None) -> None:
        """Carry moves out. Views move with all that they know, so that nothing is forgotten on the way."""
        for move in moves:
            view = self.macros[move.source].give(move.instance_id) if move.source else joining
            if move.target and view is not None:
                if move.target not in self.macros:
                    policy = self._policy(self.policy_name)
                    self.macros[move.target] = MacroInstance(move.target, policy)
                self.macros[move.target].take(view)
            if move.source and not self.macros[move.source]:
                del self.macros[move.source]
        if moves:
            self._actions.append(Regrouped(tuple(moves)))

    def _drain(self, instance_id: str) -> None:
        if (view := self.view(instance_id)) and not view.draining:
            view.draining = True
            self._regroup(self.mitosis.leave(instance_id))

    def _split_of(self, policy: str) -> int:
        """Prefill instances; none under a policy without roles that was chosen later."""
        return self.config.prefill_instances if policy in ROUTING_WITH_ROLES else 0

    def lacks(self, name: str) -> str:
        """Why a policy would find nothing to go by here; empty: it would. ConfigError: there is none of that
        name."""
        policy = self._policy(name)
        views = [view for macro in self.macros.values() for view in macro.views]
        return policy.lacks(views) if isinstance(policy, MovingPolicy) else ""

    def _set_policy(self, name: str) -> None:
        self._policy(name)  # what is wrong is told while no instance is there, too
        fresh = {macro_id: self._policy(name) for macro_id in self.macros}
        self.policy_name = name
        for macro_id, policy in fresh.items():
            self.macros[macro_id].policy = policy
            for view in self.macros[macro_id].views:
                view.role = EVERYBODY

    def _policy(self, name: str) -> RoutingPolicy:
        knobs = self.config.knobs if name == self.config.policy else {}
        return make_routing_policy(name, self._split_of(name), knobs)

    def _scale(self, scaling: AutoScaling, now: float) -> None:
        everyone = [view for macro in self.macros.values() for view in macro.views]
        views = [view for view in everyone if not view.draining]
        slacks = [view.slack for view in views]
        decoding = sum(slack.count for slack in slacks)
        due = sum(slack.count * slack.mean_due for slack in slacks if slack.count)
        saved = due / decoding - now if decoding else FOREVER
        if scaling.wants_model(now):
            scaling.look(self._one_bears(scaling), now)
        step = scaling.step(len(views), saved, self.pending.oldest_wait(now), now, self.starting)
        if step.change > 0:
            self._actions.append(AddInstance(step.reason, step.numbers, step.change))
        elif step.change < 0 and (leaving := self.mitosis.candidate()) is not None:
            self._drain(leaving)
            self._actions.append(DrainInstance(leaving, step.reason, step.numbers))

    def _one_bears(self, scaling: AutoScaling) -> float:
        """Requests per second of an instance, by the cost models; 0 while nothing is known."""
        sizes = scaling.sizes
        views = [view for macro in self.macros.values() for view in macro.views if view.ready][:ASKED]
        if sizes is None or not views:
            return 0.0
        # Alike ones are asked once.
        asked = {(view.facts.prefill, view.kv_total) for view in views}
        return sum(modelled(*one, sizes, scaling.rules.target) for one in asked) / len(asked)
