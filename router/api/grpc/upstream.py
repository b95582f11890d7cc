"""ControllerService of a router: to an overall router it is an instance like any other."""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from router.api.grpc.groups import cleared
from router.instances.link import InstanceLink
from router.instances.sequence import PromptPrefix
from router.models.model import ServedModel
from router.parent.host import UpstreamHost, UpstreamHosts
from router.parent.sequence import ForwardedSequence
from router.scheduler.instance_report import FOREVER
from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc
from tidepipe_common.codec.adapters import adapters_to_wire
from tidepipe_common.codec.controller import check_spec, check_values, costs_to_wire, count_sequences
from tidepipe_common.codec.plan import phase_to_wire
from tidepipe_common.codec.prompt import prompt_from_wire
from tidepipe_common.codec.sampling import sampling_from_wire
from tidepipe_common.errors import InvalidRequestError, UnavailableError
from tidepipe_common.prefix import INLINE_TOKENS
from tidepipe_common.rpc.called import called_instance
from tidepipe_common.rpc.results import in_turns, stream_results
from tidepipe_common.types.plan import PROTOCOL_VERSION
from tidepipe_common.types.sampling import SamplingParams

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

REPORT_S = 0.1


class UpstreamServicer(pb_grpc.ControllerServiceServicer):
    """As ready for a model as the readiest of its instances. Which model: see UpstreamHosts."""

    def __init__(self, incarnation: str, hosts: UpstreamHosts) -> None:
        self._incarnation = incarnation
        self._hosts = hosts

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        """What our instances serve."""
        model = self._called(context).model
        facts, name = model.facts, self._hosts.instance_id(model)
        if facts is None:
            raise UnavailableError(f"router {name} has no instance yet")
        return pb.DescribeResponse(
            instance_id=name,
            incarnation=self._incarnation,
            model=facts.model,
            model_fingerprint=facts.fingerprint,
            context_length=facts.context_length,
            vocab_size=facts.vocab_size,
            eos_token_ids=facts.eos_token_ids,
            protocol_version=PROTOCOL_VERSION,
            max_sequences=self._hosts.max_sequences,
            served_names=model.names,
            ttft_ms=1000 * model.target.ttft_s,
            tpot_ms=1000 * model.target.tpot_s,
            adapters=adapters_to_wire(model.adapters),
            tool_parser=model.choices.tool_parser,
            reasoning_parser=model.choices.reasoning_parser,
            pooling=model.choices.pooling,
        )

    async def SubmitSequences(  # noqa: N802
        self, request: pb.SubmitSequencesRequest, context: Context
    ) -> pb.SubmitSequencesResponse:
        """Each finds its own instance here."""
        host = self._called(context)
        # Beside the loop: others' streams go on meanwhile.
        tokens = sum(len(spec.prompt_token_ids) for spec in request.sequences)
        count_sequences(request)
        readings = (
            _read(host.model, request)
            if tokens <= INLINE_TOKENS
            else await asyncio.to_thread(_read, host.model, request)
        )
        host.note_ordinal(request.router_id, request.ordinal)
        verdicts = []
        for spec, read in zip(request.sequences, readings, strict=True):
            verdict = pb.SubmitVerdict(sequence_id=spec.sequence_id)
            verdicts.append(verdict)
            if isinstance(read, InvalidRequestError):
                verdict.outcome, verdict.reason = pb.SubmitVerdict.OUTCOME_INVALID, str(read)
                continue
            taken = host.take(request.router_id, _sequence(host, spec, read))
            verdict.outcome = (
                pb.SubmitVerdict.OUTCOME_ACCEPTED if taken else pb.SubmitVerdict.OUTCOME_QUEUE_FULL
            )
            verdict.reason = "" if taken else f"this router has {len(self._hosts)} sequences already"
        return pb.SubmitSequencesResponse(verdicts=verdicts)

    async def CancelSequences(  # noqa: N802
        self, request: pb.CancelSequencesRequest, context: Context
    ) -> pb.CancelSequencesResponse:
        """End sequences."""
        host = self._called(context)
        await in_turns(host.cancel, request.sequence_ids)
        await in_turns(host.hub.acknowledge, request.ended_sequence_ids)
        return pb.CancelSequencesResponse()

    async def ExportSequences(  # noqa: N802
        self, request: pb.ExportSequencesRequest, context: Context
    ) -> pb.ExportSequencesResponse:
        """A router hands nothing out; its own instances do, between each other."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{self._hosts.name} is a router")

    async def LendPrefix(  # noqa: N802
        self, request: pb.LendPrefixRequest, context: Context
    ) -> pb.LendPrefixResponse:
        """Nor does it lend any."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{self._hosts.name} is a router")

    async def FetchPrefix(  # noqa: N802
        self, request: pb.FetchPrefixRequest, context: Context
    ) -> pb.FetchPrefixResponse:
        """Nor does it fetch any."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{self._hosts.name} is a router")

    async def WatchResults(  # noqa: N802
        self, request: pb.WatchResultsRequest, context: Context
    ) -> AsyncIterator[pb.WatchResultsResponse]:
        """Pass results on: the tokens of one step still travel together."""
        host = self._called(context)
        async for message in stream_results(host.hub, request, self._incarnation, host.drop):
            yield message

    async def WatchStatus(  # noqa: N802
        self, request: pb.WatchStatusRequest, context: Context
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        """Ten times a second, and when instances come, go or end sequences."""
        host = self._called(context)
        while True:
            changed = host.model.dispatcher.changed.next()
            yield pb.WatchStatusResponse(report=self._report(host, request.router_id))
            await asyncio.sleep(REPORT_S / 10)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S):
                    await changed.wait()

    async def GetInstanceStatus(  # noqa: N802
        self, request: pb.GetInstanceStatusRequest, context: Context
    ) -> pb.GetInstanceStatusResponse:
        """In short; its own AdminService has the details."""
        host = self._called(context)
        links, scheduler = list(host.model.links), host.model.dispatcher.scheduler
        status = pb.InstanceStatus(
            instance_id=self._hosts.instance_id(host.model),
            incarnation=self._incarnation,
            serving=any(link.open for link in links),
            detail=f"a router with {len(links)} instances",
            running=len(host),
            waiting=len(scheduler.pending),
            policy=scheduler.policy_name,
        )
        return pb.GetInstanceStatusResponse(status=status)

    async def SetPolicy(  # noqa: N802
        self, request: pb.SetPolicyRequest, context: Context
    ) -> pb.SetPolicyResponse:
        """Instances' policies are changed at the router that they belong to."""
        raise InvalidRequestError(f"{self._hosts.name} is a router; change policies there", "policy")

    async def ClearPrefixCache(  # noqa: N802
        self, request: pb.ClearPrefixCacheRequest, context: Context
    ) -> pb.ClearPrefixCacheResponse:
        """Of all our instances. UNAVAILABLE if one of them does not answer: it may still find something."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cleared(link)) for link in self._called(context).model.links]
        entries = [task.result() for task in tasks]
        if missed := [f"{entry.instance_id}: {entry.error}" for entry in entries if entry.error]:
            raise UnavailableError("not cleared: " + "; ".join(missed))
        return pb.ClearPrefixCacheResponse(blocks=sum(entry.blocks for entry in entries))

    def _called(self, context: Context) -> UpstreamHost:
        return self._hosts.find(called_instance(context))

    def _report(self, host: UpstreamHost, router_id: str) -> pb.InstanceReport:
        links = list(host.model.links)
        readiest = min((link for link in links if link.open and link.report), key=_left_tokens, default=None)
        report = pb.InstanceReport() if readiest is None else _last_report(readiest, host.now())
        report.incarnation = self._incarnation
        report.serving = readiest is not None
        report.accepted = host.ordinal(router_id)
        report.sequences = len(host)
        report.tokens = sum(link.placements.tokens for link in links) // max(1, len(links))
        report.policy = host.model.dispatcher.scheduler.policy_name
        return report


class _Reading(NamedTuple):
    """What of a sequence was read beside the loop. prefix: by what the beginning of its prompt is found."""

    sampling: SamplingParams
    prefix: PromptPrefix


def _read(model: ServedModel, request: pb.SubmitSequencesRequest) -> list[_Reading | InvalidRequestError]:
    """Each sequence; of those that nobody can take why."""
    vocab_size = 0 if model.facts is None else model.facts.vocab_size
    found: list[_Reading | InvalidRequestError] = []
    for one in request.sequences:
        try:
            check_spec(one)
            sampling = sampling_from_wire(one.sampling)
            check_values(one.prompt_token_ids, one.output_token_ids, sampling, vocab_size)
        except InvalidRequestError as error:
            found.append(error)
        else:
            prefix = model.prefixes.prefix(one.prefix_root, one.prompt_token_ids, one.adapter)
            found.append(_Reading(sampling, prefix))
    return found


def _sequence(host: UpstreamHost, spec: pb.SequenceSpec, read: _Reading) -> ForwardedSequence:
    return ForwardedSequence(
        spec.sequence_id,
        array("I", spec.prompt_token_ids),
        spec.output_token_ids,
        read.sampling,
        prompt_from_wire(spec.prompt_features),
        host.hub,
        arrived=host.now() - spec.age_ms / 1000,
        ttft_s=spec.ttft_ms / 1000 if spec.ttft_ms > 0 else None,
        tpot_s=spec.tpot_ms / 1000 if spec.tpot_ms > 0 else None,
        piece_gap_s=spec.piece_gap_ms / 1000,
        tenant=spec.tenant,
        prefix=read.prefix,
        trace_context=spec.trace_context,
        priority=spec.priority,
        background=spec.background,
        adapter=spec.adapter,
    )


def _left_tokens(link: InstanceLink) -> int:
    return link.report.left.tokens if link.report is not None else 0


def _last_report(link: InstanceLink, now: float) -> pb.InstanceReport:
    """What an instance said last, as of now: times become ages again."""
    report, costs = link.report, link.costs
    assert report is not None and costs is not None, "it has reported"
    slack, told = report.slack, costs.costs
    return pb.InstanceReport(
        phase=phase_to_wire(report.phase),
        phase_age_s=now - report.switched,
        kv_tokens_total=report.kv_total,
        kv_tokens_free=report.kv_free,
        kv_tokens_peak=report.kv_peak,
        expected_output_tokens=report.expected_output,
        window=pb.PrefillWork(tokens=report.window.tokens, pairs=report.window.pairs),
        left=pb.PrefillWork(tokens=report.left.tokens, pairs=report.left.pairs),
        window_left_s=None if report.window_deadline == FOREVER else report.window_deadline - now,
        slack=None
        if slack.mean_due == FOREVER
        else pb.Slack(
            count=slack.count,
            mean_s=slack.mean_due - now,
            low_s=slack.low_due - now,
            low_latest_s=slack.low_latest - now,
        ),
        costs=costs_to_wire(told),
    )
