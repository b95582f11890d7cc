"""An instance in virtual time that is the controller's scheduler itself: nothing is skipped."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from controller.scheduler.actions import (
    Announced,
    Dispatch,
    Emit,
    Fetch,
    Finish,
    HandedOver,
    PrefixFound,
    PrefixLent,
    Refused,
    TakenOver,
)
from controller.scheduler.events import (
    BlocksFetched,
    Event,
    HandOverAsked,
    LengthPredicted,
    NewSequence,
    PrefixAsked,
    PrefixOffered,
    SequenceCancelled,
    SequencesArrived,
    StagesReady,
    StepDone,
    Tick,
)
from controller.scheduler.hand_over import HandOver
from controller.scheduler.holdings import HoldingsReader
from controller.scheduler.passing_on import HELD_S
from controller.scheduler.policies.catalog import DEFAULTS, Knobs, known_knobs, make_setup, step_knob
from controller.scheduler.report import instance_report
from controller.scheduler.scheduler import Scheduler
from controller.scheduler.sequence import State
from router.scheduler.instance_report import FOREVER, InstanceReport
from simulator.cluster_spec import ClusterSpec
from simulator.job import NOT_YET, P90, ROOT, Job
from simulator.pipeline import SimulatedStages
from simulator.simulated_model import GO_ON, STOP, SimulatedModel
from simulator.slack import as_points
from simulator.transfers import NOT_FETCHED, Arriving, Left, handle_of
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.model import LatencyModel
from tidepipe_common.latency.transfer import TransferCosts
from tidepipe_common.latency.work import work_of
from tidepipe_common.settings.defaults import BLOCK_SIZE, ROUTING_WITH_ROLES
from tidepipe_common.types.kv_transfer import (
    LEASE_S,
    MOST_LEASE_S,
    NO_TRANSFER,
    KvFetched,
    KvHandle,
    KvTransfer,
)
from tidepipe_common.types.plan import SampledTokens, StepPlan
from tidepipe_common.types.sampling import SamplingParams

_ACCEPTED = 1 << 30


ROLES = "roles"
"""Hybrid's instances under the routing policy of that name: shares of prefill that move by themselves, and KV
blocks sent between nodes. `roles:P`: a fixed split, with P instances that compute prompts and no more."""


def instance_policy(system: str) -> str:
    """The policy of a system's instances; `route:NAME` is a routing policy over PaDG's, prompts apart."""
    if system.startswith("route:"):
        return "padg-apart"
    return "hybrid" if system not in DEFAULTS and moving_routing(system) else system


def is_roles(system: str) -> bool:
    """Is it `roles`, by itself or with a fixed split?"""
    name, split, prefill = system.partition(":")
    return name == ROLES and (not split or prefill.isdecimal())


def moving_routing(system: str) -> str | None:
    """The routing policy of a system whose sequences move; None: they stay where they are."""
    return ROLES if is_roles(system) else system if system in ROUTING_WITH_ROLES else None


@dataclass(frozen=True, slots=True)
class ExactRules:
    """A policy of live instances, and its settings that are not the defaults.

    split: layers of each stage, the last of which has the LM head; empty if all take equally long.
    """

    policy: str
    knobs: Knobs
    split: tuple[int, ...] = ()

    @classmethod
    def of(cls, system: str, knobs: Knobs) -> ExactRules:
        """The instances of a system with these knobs."""
        policy = instance_policy(system)
        return cls(policy, {**known_knobs(policy, knobs), step_knob(policy): knobs["budget"]})

    def scheduler(
        self, spec: ClusterSpec, cost: LatencyModel, transfers: TransferCosts | None = None
    ) -> Scheduler:
        """A fresh one. transfers: of KV blocks that come to it; None: none do."""
        setup = make_setup(self.policy, self.knobs, cost, spec.hardware.name)
        config = setup.config(
            spec.context, (STOP,), max_sequences=_ACCEPTED, prefix_caching=spec.prefix_caching
        )
        config = replace(config, dispatch_s=spec.dispatch_s)
        return Scheduler(config, setup.policy, hand_over=HandOver(cost, transfers) if transfers else None)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step on its way. began: when the first stage took it up."""

    ends: float
    began: float
    done: StepDone


class ExactInstance:
    """See the module. The simulated model knows where each output ends."""

    def __init__(
        self,
        rules: ExactRules,
        spec: ClusterSpec,
        born: float = 0.0,
        *,
        tells: bool = False,
        transfer: KvTransfer = NO_TRANSFER,
    ) -> None:
        """tells: reports say what can be found. transfer: of KV blocks that come here."""
        self.first_tokens: list[Job] = []
        self.ended: list[Job] = []
        self.left: list[Left] = []
        self.arriving: list[Arriving] = []
        self.begun: list[Left] = []
        self._offered: Job | None = None
        self._lent = 0
        self._said, self._token_bytes = transfer, transfer.token_bytes
        self._cost = spec.latency()
        self._scheduler = rules.scheduler(spec, self._cost, TransferCosts.of(transfer))
        held = self._scheduler.state.holdings
        self._holdings = HoldingsReader(held) if tells and held is not None else None
        self._stages = SimulatedStages(self._cost, spec.stages, spec.dispatch_s, rules.split)
        self._in_flight: deque[_Flight] = deque()
        self._jobs: dict[str, Job] = {}
        self._brought: set[str] = set()
        self._fresh: set[str] = set()
        self._model = SimulatedModel()
        self._accepted = 0
        self._now = born
        self._began = born
        blocks = spec.kv_tokens() // self._scheduler.config.block_size
        self._hear(StagesReady(1, spec.stages, blocks, node=transfer.node))

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job, now: float, loan: KvHandle | None = None) -> None:
        """A request was sent here. loan: what another instance lends of its beginning."""
        self.advance(now)
        self._accepted += 1
        name = f"r{job.index}"
        self._fresh.add(name)
        self._jobs[name] = job
        self._model.expect(job.index, job.output)
        sampling = SamplingParams(max_tokens=None, seed=job.index)
        new = NewSequence(
            name,
            job.prompt_ids,
            sampling,
            prefix_root=ROOT.hex(),
            first_token_due=job.arrival + job.slo.ttft_s,
            tpot_s=job.slo.tpot_s,
            kv=loan,
            ahead="ab" if job.passes_on else "",
        )
        self._hear(SequencesArrived((new,)))
        self._hear(LengthPredicted(name, job.expected, P90 * job.expected))

    def lend(self, job: Job, now: float) -> int:
        """Keep what is here of its prompt's beginning for another instance: so many tokens."""
        self.advance(now)
        name, keys = f"l{job.index}", job.keys[: (job.prompt - 1) // BLOCK_SIZE]
        self._lent = 0
        self._hear(PrefixAsked(name, "aa", job.prompt_ids, ROOT.hex(), LEASE_S, keys))
        return self._lent

    def offer(self, job: Job, giver: str, now: float) -> None:
        """Its prompt is being computed at an instance of that node, and it is to go on here; `arriving` says
        what is fetched of its blocks meanwhile."""
        self.advance(now)
        job.make_keys()
        if not (count := (job.prompt - 1) // BLOCK_SIZE):
            return
        handle = handle_of(giver, count * BLOCK_SIZE, self._token_bytes, LEASE_S, job.keys[count - 1].hex())
        self._offered = job
        self._hear(PrefixOffered(handle, job.prompt_ids, ROOT.hex(), job.keys[:count]))

    def take_back(self, job: Job, now: float) -> None:
        """Nobody needs that any more."""
        self.advance(now)
        self._hear(SequenceCancelled(f"l{job.index}"))

    def borrow(self, job: Job, tokens: int, giver: str, now: float) -> None:
        """As submit; `arriving` says what is to be fetched, if at all."""
        last_key = job.keys[tokens // BLOCK_SIZE - 1].hex()
        self.submit(job, now, handle_of(giver, tokens, self._token_bytes, LEASE_S, last_key))
        if not self.arriving:
            # It is computed, or waits for what comes for another one.
            self.arriving.append(Arriving(job, 0.0, NOT_FETCHED))

    def leave(self, job: Job, now: float) -> None:
        """It is to go on elsewhere; `left` says when it does."""
        self.advance(now)
        name = f"r{job.index}"
        if name in self._jobs:
            self._hear(HandOverAsked(((name, "aa"),), MOST_LEASE_S))

    def release(self, job: Job, now: float) -> None:
        """Nobody fetches it any more."""
        self.advance(now)
        self._hear(SequenceCancelled(f"r{job.index}"))

    def receive(self, job: Job, giver: str, now: float) -> None:
        """A request comes from another instance, of that node; `arriving` says what is to be fetched for it,
        if at all."""
        self.advance(now)
        self._accepted += 1
        name = f"r{job.index}"
        if job.resumed == NOT_YET:
            self._fresh.add(name)
        self._jobs[name] = job
        self._brought.add(name)
        self._model.expect(job.index, job.output)
        new = NewSequence(
            name,
            job.prompt_ids,
            SamplingParams(max_tokens=None, seed=job.index),
            output=(GO_ON,) * job.generated,
            prefix_root=ROOT.hex(),
            tpot_s=job.slo.tpot_s,
            kv=handle_of(giver, job.to_compute - 1, self._token_bytes, MOST_LEASE_S),
        )
        self._hear(SequencesArrived((new,)))
        self._hear(LengthPredicted(name, job.expected, P90 * job.expected))

    def fetched(self, one: Arriving, seconds: float, now: float) -> None:
        """Its blocks are here."""
        self.advance(now)
        if one.number != NOT_FETCHED:
            self._hear(BlocksFetched(KvFetched(one.number, "", round(one.nbytes), seconds)))

    def advance(self, until: float) -> None:
        """Hear all results that come by then."""
        while self._in_flight and self._in_flight[0].ends <= until:
            flight = self._in_flight.popleft()
            self._now, self._began = flight.ends, flight.began
            self._hear(flight.done)
        self._now = max(self._now, until)
        if self._scheduler.batches.leaving and not self._in_flight:
            self._hear(Tick())

    def decoding(self) -> list[tuple[Job, int]]:
        """All that decode, with their tokens so far."""
        sequences = self._scheduler.sequences
        known = ((job, sequences[name]) for name, job in self._jobs.items() if name in sequences)
        return [(job, len(one.output)) for job, one in known if one.state is State.DECODE]

    def drain(self) -> None:
        """Hear all results there are."""
        while self._in_flight or self._scheduler.batches.leaving:
            # Those that wait for their way out decode here when nobody asks for them.
            self.advance(self._in_flight[0].ends if self._in_flight else self._now + HELD_S)
        if self._jobs:
            raise ConfigError(f"the policy stalled with {len(self._jobs)} requests left")

    def status(self, now: float, *, slack: bool) -> InstanceReport:
        """The report that a live controller sends, in the router's terms."""
        found = instance_report(self._scheduler, self._cost, now)
        transfers = self._scheduler.hand_over.transfers
        return InstanceReport(
            taken=now,
            accepted=self._accepted,
            phase=found.phase,
            switched=now - found.phase_age_s,
            sequences=found.sequences,
            tokens=found.tokens,
            kv_free=found.kv_free,
            kv_total=found.kv_total,
            kv_peak=found.kv_peak,
            expected_output=found.expected_output,
            window=found.window,
            left=found.left,
            window_deadline=FOREVER if found.window_left_s is None else now + found.window_left_s,
            slack=as_points(found.slack, now),
            policy=found.policy,
            holdings=None if self._holdings is None else self._holdings.next(),
            transfer=replace(self._said, far=transfers.far.way(now), near=transfers.near.way(now)),
        )

    def _hear(self, event: Event) -> None:
        for action in self._scheduler.on(event, self._now):
            match action:
                case Emit(sequence_ids):
                    if self._fresh:
                        self._emitted(sequence_ids)
                case PrefixFound(sequence_id, cached_tokens):
                    self._jobs[sequence_id].cached = cached_tokens
                case Dispatch(plan):
                    self._compute(plan)
                case HandedOver(sequence_id, grant):
                    computed = 0 if grant is None else grant.computed
                    self._handed_over(self._jobs.pop(sequence_id), sequence_id, computed)
                case Fetch(fetch_id, sequence_id, handle, _, blocks):
                    nbytes = len(blocks) * handle.block_bytes
                    job = self._offered if action.ahead else self._jobs[sequence_id]
                    assert job is not None, "it was offered"
                    self.arriving.append(Arriving(job, nbytes, fetch_id, action.ahead))
                case Announced(sequence_id):
                    self.begun.append(Left(self._now, self._jobs[sequence_id]))
                case PrefixLent(_, grant):
                    self._lent = 0 if grant is None else grant.computed
                case TakenOver(sequence_id, 0) if sequence_id in self._brought:
                    # Computed here after all, or all of it is here: its blocks are not needed.
                    self.arriving.append(Arriving(self._jobs[sequence_id], 0.0, NOT_FETCHED))
                case Finish(sequence_id):
                    self._finished(self._jobs.pop(sequence_id), action.preemptions)
                case Refused(sequence_id, _, detail):
                    raise ConfigError(f"request {sequence_id} cannot be served: {detail}")
                case _:
                    pass

    def _emitted(self, sequence_ids: tuple[str, ...]) -> None:
        for name in sequence_ids:
            if name in self._fresh:
                self._token(self._jobs[name], name)

    def _token(self, job: Job, name: str) -> None:
        """One of the first two."""
        if job.first == NOT_YET:
            job.first = self._now
            self.first_tokens.append(job)
        elif job.resumed == NOT_YET:
            job.resumed = max(job.first, self._began)
            self._fresh.discard(name)

    def _handed_over(self, job: Job, name: str, computed: int) -> None:
        self._fresh.discard(name)
        self._model.forget(job.index)
        job.generated = max(job.generated, computed + 1 - job.prompt)
        self.left.append(Left(self._now, job))

    def _finished(self, job: Job, preemptions: int) -> None:
        name = f"r{job.index}"
        # The last token ended it, and so was not emitted.
        if name in self._fresh:
            self._token(job, name)
            self._fresh.discard(name)
        self._model.forget(job.index)
        self._brought.discard(name)
        job.finished = self._now
        job.generated = job.output
        job.preemptions += preemptions
        self.ended.append(job)

    def _compute(self, plan: StepPlan) -> None:
        sampled = self._model.sample(plan)
        spans = self._stages.compute(work_of(plan), self._now)
        done = StepDone(plan.step_id, SampledTokens(sampled))
        self._in_flight.append(_Flight(spans[-1][1], spans[0][0], done))
