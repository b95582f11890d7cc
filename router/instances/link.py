"""The router's link to one instance: hands sequences over, takes results in, survives any break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from router.instances.cancellations import Cancellations
from router.instances.handover import HandOver
from router.instances.host import StayHost
from router.instances.intake import ResultIntake
from router.instances.model_facts import InstanceFacts, instance_facts
from router.instances.placement import Placement, PlacementTable, Stay
from router.instances.report import ReportedCost
from router.instances.status_watch import StatusWatch
from router.instances.watch import ResultWatch
from router.scheduler.prefill import PrefillTime
from router.scheduler.view import InstanceFacts as CoreFacts
from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc
from tidepipe.v1 import timeline_pb2, timeline_pb2_grpc
from tidepipe_common.errors import IncompatibleError, TidePipeError
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import translated

DESCRIBE_TIMEOUT_S = 1.5
"""Within the time for which a controller waits for its registration."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class InstanceAddress:
    """An instance as it announces itself; address is HOST:PORT of its controller."""

    instance_id: str
    address: str
    incarnation: str


class ReportHost(Protocol):
    """Hears how instances stand. No call blocks."""

    @property
    def report_interval_s(self) -> float:
        """Time between two reports at most, at present."""
        ...

    def reported(self, link: InstanceLink, report: pb.InstanceReport) -> None:
        """The instance says how it stands."""
        ...

    def silent(self, link: InstanceLink) -> None:
        """The instance says nothing any more."""
        ...


class InstanceLink:
    """One instance, its connection, and the sequences that the router has there."""

    def __init__(
        self,
        announced: InstanceAddress,
        router_id: str,
        host: StayHost,
        reports: ReportHost,
        admit: Callable[[InstanceFacts], None],
        clock: Callable[[], float],
    ) -> None:
        """admit: raises IncompatibleError if the instance serves another model than the router."""
        self.announced = announced
        self.placements = PlacementTable()
        self.facts: InstanceFacts | None = None
        self.connected = False
        self.disconnected_at = clock()
        self.draining = False
        self.lease_valid = True
        self.set_aside = False
        self.last_report: pb.InstanceReport | None = None
        self.serving = False
        self.count_base = 0
        self._routed = 0
        self._costs: ReportedCost | None = None
        self._host = host
        self._reports = reports
        self._admit = admit
        self._clock = clock
        self._log = log.bind(instance=announced.instance_id)
        self._channel = open_channel(announced.address)
        self._stub = pb_grpc.ControllerServiceStub(self._channel)
        self._ready = asyncio.Event()
        self._handover = HandOver(self._stub, router_id, self._ready, self, self._is_here, clock)
        self._cancellations = Cancellations(self._stub, self._ready)
        cancellations = self._cancellations
        intake = ResultIntake(self.placements, host, cancellations.add, cancellations.acknowledge)
        self._watch = ResultWatch(self._stub, router_id, self.placements, intake, self, clock)
        self._status_watch = StatusWatch(self._stub, router_id, self._ready, self)

    @property
    def instance_id(self) -> str:
        """Name of the instance."""
        return self.announced.instance_id

    @property
    def open(self) -> bool:
        """True if it takes new sequences, room permitting."""
        return self.connected and self.lease_valid and not self.draining and not self.set_aside

    @property
    def context_length(self) -> int:
        """Prompt and output of one sequence together at most, tokens; zero before it is known."""
        return 0 if self.facts is None else self.facts.model.context_length

    def core_facts(self, costs: pb.StepCosts) -> CoreFacts:
        """What routing needs to know once; the costs behind it follow the reports."""
        assert self.facts is not None, "it was described before it was attached"
        self._costs = ReportedCost(costs)
        return CoreFacts(
            instance_id=self.instance_id,
            prefill=PrefillTime(self._costs, max(1, costs.stages), max(1, costs.step_tokens)),
            context_length=self.facts.model.context_length,
            max_sequences=self.facts.max_sequences,
        )

    def restart_count(self) -> None:
        """The core counts from 0 what is given to this link from now on."""
        self.count_base = self._routed

    async def describe(self) -> None:
        """Ask what it serves. IncompatibleError if that does not fit, UnavailableError without an answer."""
        announced = self.announced
        with translated(f"instance {announced.instance_id} at {announced.address} does not answer"):
            await self._describe()

    async def status(self, timeout: float) -> pb.InstanceStatus:
        """How it stands, in its own words."""
        with translated():
            reply = await self._stub.GetInstanceStatus(pb.GetInstanceStatusRequest(), timeout=timeout)
        return reply.status

    def timeline(
        self, request: timeline_pb2.GetTimelineRequest, timeout: float
    ) -> AsyncIterator[timeline_pb2.GetTimelineResponse]:
        """What it has done lately, in pieces; grpc.aio.AioRpcError while they are read."""
        call = timeline_pb2_grpc.TimelineServiceStub(self._channel).GetTimeline(request, timeout=timeout)
        return aiter(call)

    def place(self, placement: Placement) -> None:
        """Give it a sequence."""
        self._routed += 1
        placement.ordinal = self._routed
        self.placements.add(placement)
        self._handover.add(placement)

    def withdraw(self, placement: Placement) -> None:
        """Nobody waits for this sequence any more."""
        if self.placements.remove(placement) and placement.stay is not Stay.QUEUED:
            self._cancellations.add(placement.placement_id)

    async def run(self) -> None:
        """Work until cancelled. IncompatibleError (in a group) if it comes back with another model."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._handover.run())
            group.create_task(self._cancellations.run())
            group.create_task(self._watch.run())
            group.create_task(self._status_watch.run())

    async def cancellations_sent(self) -> None:
        """Return when the instance has been told of every sequence that was withdrawn."""
        await self._cancellations.drained()

    async def close(self, reason: str) -> None:
        """Give everything back and hang up. Call it after `run` has ended."""
        self.connected = False
        self._give_back(list(self.placements), reason)
        await self._channel.close()

    async def greeted(self, incarnation: str) -> None:
        """Part of WatchHost."""
        if self.facts is None or incarnation != self.facts.incarnation:
            # A restarted controller knows none of the sequences, and might serve another model.
            self._cancellations.forget()
            begun = [placement for placement in self.placements if placement.stay is not Stay.QUEUED]
            self._give_back(begun, "the controller restarted")
            await self._describe()
        if not self.connected:
            self._log.info("connected", address=self.announced.address, incarnation=incarnation)
            self.connected = True
            self._ready.set()
            self._host.wake()

    def broken(self, reason: str) -> None:
        """Part of WatchHost."""
        if self.connected:
            self._log.warning("disconnected", reason=reason)
            self.connected = self.serving = False
            self.disconnected_at = self._clock()
            self._ready.clear()
            self._host.wake()

    def bounced(self, placement: Placement, reason: str, *, draining: bool) -> None:
        """Part of HandOverHost."""
        if draining:
            self.draining = True
        placement.stay = Stay.QUEUED
        self._give_back([placement], f"the instance takes no more: {reason}")

    def refused(self, placement: Placement, error: TidePipeError) -> None:
        """Part of HandOverHost."""
        self.placements.remove(placement)
        self._host.refused(placement, error)

    async def choose_policy(self, name: str, timeout: float) -> str:
        """Have it schedule by another policy; the name of the one before. InvalidRequestError: unknown."""
        with translated():
            reply = await self._stub.SetPolicy(pb.SetPolicyRequest(policy=name), timeout=timeout)
        return reply.before

    @property
    def report_interval_s(self) -> float:
        """Part of StatusHost."""
        return self._reports.report_interval_s

    def reported(self, report: pb.InstanceReport) -> None:
        """Part of StatusHost."""
        self.last_report = report
        self.serving = report.serving
        if self._costs is not None:
            self._costs.update(report.costs)
        self._reports.reported(self, report)

    def silent(self) -> None:
        """Part of StatusHost."""
        self.serving = False
        self._reports.silent(self)

    async def _describe(self) -> None:
        message = await self._stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S)
        facts = instance_facts(message)
        if facts.instance_id != self.instance_id:
            raise IncompatibleError(
                f"{self.announced.address} is instance {facts.instance_id}, not {self.instance_id}"
            )
        self._admit(facts)
        self.facts = facts
        self.announced = replace(self.announced, incarnation=facts.incarnation)

    def _give_back(self, placements: list[Placement], reason: str) -> None:
        for placement in placements:
            self.placements.remove(placement)
        if placements:
            self._host.give_back(placements, reason)

    def _is_here(self, placement: Placement) -> bool:
        return self.placements.get(placement.placement_id) is placement
