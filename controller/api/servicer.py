"""ControllerService (sequences in, results out) and TimelineService of one instance."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from controller.api.report import WAIT_BETWEEN_S, interval_s, report_to_wire
from controller.api.status import instance_status
from controller.runtime.live import LiveInstance
from controller.scheduler.actions import Refusal, Refused
from controller.scheduler.events import NewSequence
from controller.scheduler.holdings import HoldingsReader
from controller.scheduler.report import instance_report, step_costs
from tidepipe.v1 import controller_pb2, controller_pb2_grpc, timeline_pb2, timeline_pb2_grpc
from tidepipe_common.codec.controller import check_spec
from tidepipe_common.codec.offer import add_offer
from tidepipe_common.codec.prompt import prompt_from_wire
from tidepipe_common.codec.sampling import sampling_from_wire
from tidepipe_common.codec.timeline import timeline_to_wire
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.latency.model import StepCost
from tidepipe_common.prefix import INLINE_TOKENS, block_keys
from tidepipe_common.rpc.results import stream_results
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.settings.instance import InstanceSettings
from tidepipe_common.types.plan import PROTOCOL_VERSION
from tidepipe_common.types.sampling import SamplingParams

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

Verdict = controller_pb2.SubmitVerdict
Arrivals = tuple[list[NewSequence], dict[str, Refused]]


class ControllerServicer(controller_pb2_grpc.ControllerServiceServicer):
    """The instance as routers see it."""

    def __init__(
        self,
        instance: LiveInstance,
        settings: InstanceSettings,
        incarnation: str,
        cost: Callable[[], StepCost],
    ) -> None:
        """cost: what steps cost here, as far as it is known; asked for once the stages are up."""
        self._instance = instance
        self._cost = cost
        self._settings = settings
        self._instance_id = settings.instance_id
        self._incarnation = incarnation
        self._reading = asyncio.Lock()
        """Held while long prompts are read, so that nobody's cancelling overtakes what it cancels."""

    async def Describe(  # noqa: N802 (the contract's name)
        self, request: controller_pb2.DescribeRequest, context: Context
    ) -> controller_pb2.DescribeResponse:
        """See controller.proto."""
        scheduler = self._instance.scheduler
        about = self._instance.body.about
        assert about is not None, "a scheduler exists only after the stages described themselves"
        reply = controller_pb2.DescribeResponse(
            instance_id=self._instance_id,
            incarnation=self._incarnation,
            model=about.model,
            model_fingerprint=about.fingerprint,
            context_length=scheduler.longest_sequence,
            vocab_size=about.shape.vocab_size,
            eos_token_ids=about.shape.eos_token_ids,
            protocol_version=PROTOCOL_VERSION,
            max_sequences=scheduler.config.max_sequences,
        )
        add_offer(reply, self._settings)
        return reply

    async def SubmitSequences(  # noqa: N802
        self, request: controller_pb2.SubmitSequencesRequest, context: Context
    ) -> controller_pb2.SubmitSequencesResponse:
        """See controller.proto."""
        arrivals, refused = await self._read(request)
        if self._instance.draining:
            return draining_verdicts(request)
        refused |= self._instance.submit(request.router_id, arrivals, request.ordinal)
        return verdicts_of(request, refused)

    async def _read(self, request: controller_pb2.SubmitSequencesRequest) -> Arrivals:
        """Long prompts beside the loop, which has others' results to send."""
        now, check = self._instance.now(), self._instance.body.check
        tokens = sum(len(spec.prompt_token_ids) + len(spec.output_token_ids) for spec in request.sequences)
        if tokens <= INLINE_TOKENS or self._instance.draining:
            return arrivals_from_wire(request, now, check=check)
        config = self._instance.scheduler.config
        block_size = config.block_size if config.prefix_caching else 0
        async with self._reading:
            return await asyncio.to_thread(arrivals_from_wire, request, now, block_size, check)

    async def CancelSequences(  # noqa: N802
        self, request: controller_pb2.CancelSequencesRequest, context: Context
    ) -> controller_pb2.CancelSequencesResponse:
        """See controller.proto."""
        async with self._reading:
            pass
        for sequence_id in request.sequence_ids:
            self._instance.cancel(sequence_id)
        for sequence_id in request.ended_sequence_ids:
            self._instance.hub.acknowledge(sequence_id)
        return controller_pb2.CancelSequencesResponse()

    async def WatchResults(  # noqa: N802
        self, request: controller_pb2.WatchResultsRequest, context: Context
    ) -> AsyncIterator[controller_pb2.WatchResultsResponse]:
        """See controller.proto."""
        async for message in stream_results(
            self._instance.hub, request, self._incarnation, self._instance.drop
        ):
            yield message

    async def GetInstanceStatus(  # noqa: N802
        self, request: controller_pb2.GetInstanceStatusRequest, context: Context
    ) -> controller_pb2.GetInstanceStatusResponse:
        """See controller.proto."""
        status = instance_status(self._instance, self._instance_id, self._incarnation)
        return controller_pb2.GetInstanceStatusResponse(status=status)

    async def WatchStatus(  # noqa: N802
        self, request: controller_pb2.WatchStatusRequest, context: Context
    ) -> AsyncIterator[controller_pb2.WatchStatusResponse]:
        """See controller.proto."""
        instance, pause_s = self._instance, interval_s(request.interval_ms)
        held = instance.scheduler.state.holdings
        holdings = None if held is None else HoldingsReader(held)
        while True:
            changed = instance.changed.next()
            began = time.monotonic()
            report = instance_report(instance.scheduler, self._cost(), began)
            costs = step_costs(instance.scheduler, self._cost())
            yield controller_pb2.WatchStatusResponse(
                report=report_to_wire(
                    report,
                    costs,
                    None if holdings is None else holdings.next(),
                    incarnation=self._incarnation,
                    serving=instance.serving and not instance.draining,
                    accepted=instance.hub.ordinal(request.router_id),
                )
            )
            # A report looks at every sequence: with very many it must not take more than a tenth of the time.
            spent = time.monotonic() - began
            await asyncio.sleep(max(WAIT_BETWEEN_S, 10 * spent))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await changed.wait()

    async def SetPolicy(  # noqa: N802
        self, request: controller_pb2.SetPolicyRequest, context: Context
    ) -> controller_pb2.SetPolicyResponse:
        """See controller.proto."""
        return controller_pb2.SetPolicyResponse(before=self._instance.choose_policy(request.policy))

    async def ClearPrefixCache(  # noqa: N802
        self, request: controller_pb2.ClearPrefixCacheRequest, context: Context
    ) -> controller_pb2.ClearPrefixCacheResponse:
        """See controller.proto."""
        return controller_pb2.ClearPrefixCacheResponse(blocks=self._instance.clear_prefix_cache())


class TimelineServicer(timeline_pb2_grpc.TimelineServiceServicer):
    """What the instance has done lately."""

    def __init__(self, instance: LiveInstance, instance_id: str) -> None:
        self._instance = instance
        self._instance_id = instance_id

    async def GetTimeline(  # noqa: N802
        self, request: timeline_pb2.GetTimelineRequest, context: Context
    ) -> AsyncIterator[timeline_pb2.GetTimelineResponse]:
        """See timeline.proto."""
        now = self._instance.now()
        since = now - request.seconds if request.seconds > 0 else 0.0
        timeline = self._instance.activity.timeline(self._instance_id, since, time.time() - now)
        for piece in timeline_to_wire(timeline):
            yield piece


async def start_serving(
    server: RpcServer, controller: ControllerServicer, timelines: TimelineServicer
) -> str:
    """Answer both services at the server's address, HOST:PORT, which is returned."""
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(controller, server.server)
    timeline_pb2_grpc.add_TimelineServiceServicer_to_server(timelines, server.server)
    return await server.start(
        [
            controller_pb2.DESCRIPTOR.services_by_name["ControllerService"],
            timeline_pb2.DESCRIPTOR.services_by_name["TimelineService"],
        ]
    )


def new_sequence_from_wire(spec: controller_pb2.SequenceSpec, now: float) -> NewSequence:
    """Protobuf to domain, with points in time of the core's clock."""
    return NewSequence(
        sequence_id=spec.sequence_id,
        prompt=tuple(spec.prompt_token_ids),
        sampling=sampling_from_wire(spec.sampling),
        output=tuple(spec.output_token_ids),
        deadline=now + spec.deadline_ms / 1000 if spec.deadline_ms else None,
        first_token_due=now + (spec.ttft_ms - spec.age_ms) / 1000 if spec.ttft_ms > 0 else None,
        tpot_s=spec.tpot_ms / 1000 if spec.tpot_ms > 0 else None,
        features=prompt_from_wire(spec.prompt_features),
        prefix_root=spec.prefix_root.hex(),
        piece_gap_s=spec.piece_gap_ms / 1000,
        trace_context=spec.trace_context,
    )


def draining_verdicts(
    request: controller_pb2.SubmitSequencesRequest,
) -> controller_pb2.SubmitSequencesResponse:
    """What an instance says to all of them that is being taken out of service."""
    outcome, reason = Verdict.OUTCOME_DRAINING, "the instance is being taken out of service"
    verdicts = [
        Verdict(sequence_id=spec.sequence_id, outcome=outcome, reason=reason) for spec in request.sequences
    ]
    return controller_pb2.SubmitSequencesResponse(verdicts=verdicts)


def arrivals_from_wire(
    request: controller_pb2.SubmitSequencesRequest,
    now: float,
    block_size: int = 0,
    check: Callable[[SamplingParams], None] = lambda sampling: None,
) -> Arrivals:
    """The sequences that are handed over, and those that carry what none may.

    block_size: of the keys that are reckoned at once; 0: none, which leaves it to the core.
    check: InvalidRequestError says what an instance cannot do.
    """
    arrivals: list[NewSequence] = []
    refused: dict[str, Refused] = {}
    for spec in request.sequences:
        try:
            check_spec(spec)
            arrival = new_sequence_from_wire(spec, now)
            check(arrival.sampling)
        except InvalidRequestError as error:
            refused[spec.sequence_id] = Refused(spec.sequence_id, Refusal.INVALID, str(error))
            continue
        if block_size and spec.prefix_root:
            tokens = arrival.prompt + arrival.output
            arrival = replace(arrival, keys=block_keys(spec.prefix_root, tokens, block_size))
        arrivals.append(arrival)
    return arrivals, refused


def verdicts_of(
    request: controller_pb2.SubmitSequencesRequest, refused: Mapping[str, Refused]
) -> controller_pb2.SubmitSequencesResponse:
    """A verdict for each sequence, in order."""
    verdicts = [_verdict(spec.sequence_id, refused.get(spec.sequence_id)) for spec in request.sequences]
    return controller_pb2.SubmitSequencesResponse(verdicts=verdicts)


def _verdict(sequence_id: str, refused: Refused | None) -> Verdict:
    if refused is None:
        return Verdict(sequence_id=sequence_id, outcome=Verdict.OUTCOME_ACCEPTED)
    full = refused.refusal is Refusal.QUEUE_FULL
    outcome = Verdict.OUTCOME_QUEUE_FULL if full else Verdict.OUTCOME_INVALID
    return Verdict(sequence_id=sequence_id, outcome=outcome, reason=refused.detail)
