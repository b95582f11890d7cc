"""The client of one instance's ControllerService: its calls and streams, in domain types.

The only module of this folder, beside router_client.py, that knows protobuf.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import grpc

from router.instances.sequence import Placement, Source
from router.instances.served_model import InstanceDescription, ModelFacts
from router.scheduler.instance_report import FOREVER, InstanceReport, Slack
from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc
from tidepipe.v1 import timeline_pb2, timeline_pb2_grpc
from tidepipe_common.codec.adapters import adapters_from_wire
from tidepipe_common.codec.controller import (
    check_report,
    costs_from_wire,
    holdings_from_wire,
    spec_to_wire,
    update_from_wire,
)
from tidepipe_common.codec.kv_transfer import (
    MOST_BARRED,
    check_handle,
    handle_from_wire,
    handle_to_wire,
    transfer_from_wire,
)
from tidepipe_common.codec.plan import phase_from_wire
from tidepipe_common.dialects import AUTO, OFF, check_reasoning_parser, dialect_named
from tidepipe_common.errors import IncompatibleError, InvalidRequestError
from tidepipe_common.latency.work import PrefillWork, StepCosts
from tidepipe_common.limits import PIECE_BYTES, SPEC_BYTES
from tidepipe_common.rpc.called import CALLED_INSTANCE, metadata_text
from tidepipe_common.rpc.status import translated
from tidepipe_common.types.kv_transfer import KvHandle
from tidepipe_common.types.plan import PROTOCOL_VERSION
from tidepipe_common.types.results import SequenceUpdate
from tidepipe_common.types.sampling import Pooling
from tidepipe_common.types.text_choices import TextChoices

DESCRIBE_TIMEOUT_S = 1.5
"""Within the time for which a controller waits for its registration."""
SUBMIT_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 5.0
LEND_TIMEOUT_S = 0.5
"""A first token waits for the answer."""
WATCH_TIMEOUT_S = 3600.0
"""Streams are renewed now and then, so that no call is without a deadline."""
MAX_BATCH_SEQUENCES = 256
RETRY_S = 0.2
"""After which a call that failed is made again."""
MAX_FAILURES = 3
"""Calls that the instance answered with an error that waiting does not heal."""
EXPORT_LEASE_S = 90.0
"""For blocks of sequences that go on elsewhere; they are given back as soon as they are there."""


class Outcome(enum.Enum):
    """What an instance says to a sequence that was handed over."""

    ACCEPTED = "accepted"
    QUEUE_FULL = "queue full"
    DRAINING = "draining"
    INVALID = "invalid"
    UNKNOWN = "unknown"
    """Nothing that this release understands."""


_OUTCOMES = {
    pb.SubmitVerdict.OUTCOME_ACCEPTED: Outcome.ACCEPTED,
    pb.SubmitVerdict.OUTCOME_QUEUE_FULL: Outcome.QUEUE_FULL,
    pb.SubmitVerdict.OUTCOME_DRAINING: Outcome.DRAINING,
    pb.SubmitVerdict.OUTCOME_INVALID: Outcome.INVALID,
}


@dataclass(frozen=True, slots=True)
class Results:
    """One message of the stream of results. incarnation: of the controller, in the first message."""

    incarnation: str
    lost: Sequence[str]
    updates: Iterable[SequenceUpdate]


class ControllerClient:
    """One controller, and the channel to it. Unless said otherwise its calls raise grpc.aio.AioRpcError."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        router_id: str,
        clock: Callable[[], float],
        instance_id: str = "",
    ) -> None:
        """instance_id: which one is called, of those behind one address."""
        self._metadata = ((CALLED_INSTANCE, metadata_text(instance_id)),)
        self._channel = channel
        self._stub = pb_grpc.ControllerServiceStub(channel)
        self._router_id = router_id
        self._clock = clock

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()

    async def describe(self) -> InstanceDescription:
        """What it serves. IncompatibleError for another contract or an account that makes no sense."""
        return _description(
            await self._stub.Describe(
                pb.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S, metadata=self._metadata
            )
        )

    # -- sequences ----------------------------------------------------------------------------------

    def hand_over(self) -> HandOverMessage:
        """A message to be filled with sequences, and sent."""
        return HandOverMessage(self._stub, self._router_id, self._clock(), self._metadata)

    async def cancel(self, unwanted: Sequence[str], ended: Sequence[str]) -> None:
        """End sequences, and tell of which we have the end."""
        await self._stub.CancelSequences(
            pb.CancelSequencesRequest(sequence_ids=unwanted, ended_sequence_ids=ended),
            timeout=CANCEL_TIMEOUT_S,
            metadata=self._metadata,
        )

    async def export(self, sequence_ids: Sequence[str]) -> None:
        """Have sequences go on elsewhere; their ends come with the results."""
        await self._stub.ExportSequences(
            pb.ExportSequencesRequest(
                router_id=self._router_id, sequence_ids=sequence_ids, lease_ms=int(1000 * EXPORT_LEASE_S)
            ),
            timeout=CANCEL_TIMEOUT_S,
            metadata=self._metadata,
        )

    async def lend(self, loan_id: str, prompt: Sequence[int], root: bytes, adapter: str) -> KvHandle:
        """Have the KV blocks of a prompt's beginning kept for another instance, until the loan is cancelled
        like a sequence; without a ticket: nothing is kept. root, adapter: as of the sequence.

        TidePipeError: it does not, what it answers makes no sense, or its channel was closed meanwhile. (That
        ends a call as if its caller had been cancelled, who is another instance's.)
        """
        with translated():
            reply = await self._stub.LendPrefix(
                pb.LendPrefixRequest(
                    loan_id=loan_id,
                    prompt_token_ids=prompt,
                    prefix_root=root,
                    adapter=adapter,
                ),
                timeout=LEND_TIMEOUT_S,
                metadata=self._metadata,
            )
        check_handle(reply.kv)
        return handle_from_wire(reply.kv)

    async def offer(self, prompt: Sequence[int], root: bytes, adapter: str, handle: KvHandle) -> None:
        """Have the KV blocks of a prompt fetched that another instance computes; as of `lend`."""
        await self._stub.FetchPrefix(
            pb.FetchPrefixRequest(
                prompt_token_ids=prompt, prefix_root=root, adapter=adapter, kv=handle_to_wire(handle)
            ),
            timeout=CANCEL_TIMEOUT_S,
            metadata=self._metadata,
        )

    async def results(self, begun: Mapping[str, int]) -> AsyncGenerator[Results, None]:
        """News of our sequences. begun: output tokens that we have of each that it may have."""
        positions = [pb.SequencePosition(sequence_id=name, output_tokens=begun[name]) for name in begun]
        call = self._stub.WatchResults(
            pb.WatchResultsRequest(router_id=self._router_id, positions=positions),
            timeout=WATCH_TIMEOUT_S,
            metadata=self._metadata,
        )
        try:
            while isinstance(message := await call.read(), pb.WatchResultsResponse):
                updates = map(update_from_wire, message.updates)
                yield Results(message.incarnation, message.lost_sequence_ids, updates)
        finally:
            call.cancel()

    # -- how it stands ------------------------------------------------------------------------------

    async def reports(self, interval_s: float) -> AsyncGenerator[tuple[InstanceReport, StepCosts], None]:
        """How it stands, at least so often, `accepted` as it counts itself; and what steps cost.

        InvalidRequestError: it tells what cannot be.
        """
        call = self._stub.WatchStatus(
            pb.WatchStatusRequest(router_id=self._router_id, interval_ms=round(1000 * interval_s)),
            timeout=WATCH_TIMEOUT_S,
            metadata=self._metadata,
        )
        try:
            while isinstance(message := await call.read(), pb.WatchStatusResponse):
                check_report(message.report)
                yield _report(message.report, self._clock()), costs_from_wire(message.report.costs)
        finally:
            call.cancel()

    async def status(self, timeout: float) -> pb.InstanceStatus:
        """How it stands, in its own words, for the API to pass on. TidePipeError if it does not answer."""
        with translated():
            reply = await self._stub.GetInstanceStatus(
                pb.GetInstanceStatusRequest(), timeout=timeout, metadata=self._metadata
            )
        return reply.status

    async def timeline(
        self, request: timeline_pb2.GetTimelineRequest, timeout: float
    ) -> AsyncGenerator[timeline_pb2.GetTimelineResponse, None]:
        """What it has done lately, in pieces, for the API to pass on. TidePipeError if it does not answer."""
        with translated():
            stub = timeline_pb2_grpc.TimelineServiceStub(self._channel)
            call = stub.GetTimeline(request, timeout=timeout, metadata=self._metadata)
            try:
                while isinstance(piece := await call.read(), timeline_pb2.GetTimelineResponse):
                    yield piece
            finally:
                call.cancel()

    async def choose_policy(self, name: str, timeout: float) -> str:
        """Have it schedule by another policy; the name of the one before. InvalidRequestError: unknown."""
        with translated():
            reply = await self._stub.SetPolicy(
                pb.SetPolicyRequest(policy=name), timeout=timeout, metadata=self._metadata
            )
        return reply.before

    async def clear_prefix_cache(self, timeout: float) -> int:
        """Have it forget what later sequences could find; how many blocks that was. TidePipeError."""
        with translated():
            reply = await self._stub.ClearPrefixCache(
                pb.ClearPrefixCacheRequest(), timeout=timeout, metadata=self._metadata
            )
        return reply.blocks


class HandOverMessage:
    """Sequences that travel to an instance together: as many as fit into PIECE_BYTES, or one."""

    def __init__(
        self,
        stub: pb_grpc.ControllerServiceAsyncStub,
        router_id: str,
        now: float,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._metadata = tuple(metadata)
        self._stub = stub
        self._request = pb.SubmitSequencesRequest(router_id=router_id)
        self._now = now
        self._size = 0

    def add(self, placement: Placement) -> bool:
        """Take one more in; False if it is full. InvalidRequestError for one that is too large for any."""
        sequence, slo = placement.sequence, placement.slo
        spec = spec_to_wire(
            placement.placement_id,
            sequence.prompt,
            sequence.output,
            sequence.sampling,
            sequence.features,
            ttft_s=slo.ttft_s,
            tpot_s=slo.tpot_s,
            age_s=self._now - sequence.arrived,
            piece_gap_s=sequence.piece_gap_s,
            tenant=sequence.tenant,
            prefix_root=sequence.prefix.root,
            trace_context=placement.span.context,
            # Among strangers nobody is more urgent than who says nothing.
            priority=max(0, sequence.priority) if sequence.tenant else sequence.priority,
            background=sequence.background,
            adapter=sequence.adapter,
            kv=_named(placement.source),
            passes_on=placement.passes_on,
        )
        size = spec.ByteSize()
        if self._size and self._size + size > PIECE_BYTES:
            return False
        if size > SPEC_BYTES:
            raise InvalidRequestError(
                f"the request is too large to be handed over: {size} bytes with its output so far, of "
                f"{SPEC_BYTES} that may be"
            )
        self._request.sequences.append(spec)
        self._size += size
        return True

    async def send(self, ordinal: int) -> dict[str, tuple[Outcome, str]]:
        """What the instance says to each, and why. ordinal: how many we have meant for it, these included."""
        self._request.ordinal = ordinal
        reply = await self._stub.SubmitSequences(
            self._request, timeout=SUBMIT_TIMEOUT_S, metadata=self._metadata
        )
        return {
            one.sequence_id: (_OUTCOMES.get(one.outcome, Outcome.UNKNOWN), one.reason)
            for one in reply.verdicts
        }


def _named(source: Source | None) -> KvHandle | None:
    return None if source is None else replace(source.handle, giver=source.instance_id)


_POOLINGS = (AUTO, OFF, *[how.value for how in Pooling])
MOST_LACKS = 64
"""Names of what an instance cannot do that are heeded."""


def _description(message: pb.DescribeResponse) -> InstanceDescription:
    name = message.instance_id
    if message.protocol_version != PROTOCOL_VERSION:
        raise IncompatibleError(
            f"instance {name} speaks protocol version {message.protocol_version}, this router speaks "
            f"{PROTOCOL_VERSION}; run the same release everywhere"
        )
    if not (message.context_length >= 2 and message.vocab_size >= 1 and message.max_sequences >= 1):
        raise IncompatibleError(
            f"instance {name} reports context length {message.context_length}, vocabulary size "
            f"{message.vocab_size} and {message.max_sequences} sequences at most, which cannot be"
        )
    return InstanceDescription(
        instance_id=name,
        incarnation=message.incarnation,
        model=ModelFacts(
            model=message.model,
            fingerprint=message.model_fingerprint,
            context_length=message.context_length,
            vocab_size=message.vocab_size,
            eos_token_ids=tuple(message.eos_token_ids),
        ),
        max_sequences=message.max_sequences,
        names=tuple(message.served_names),
        ttft_ms=_target(name, message.ttft_ms),
        tpot_ms=_target(name, message.tpot_ms),
        provisioner=message.provisioner,
        lacks=frozenset(message.lacks[:MOST_LACKS]),
        adapters=adapters_from_wire(f"instance {name}", message.adapters),
        choices=_choices(name, message),
        hands_over=message.hands_over,
    )


def _choices(name: str, message: pb.DescribeResponse) -> TextChoices:
    try:
        if message.tool_parser:
            dialect_named(message.tool_parser)
        if message.reasoning_parser:
            check_reasoning_parser(message.reasoning_parser)
    except InvalidRequestError as error:
        raise IncompatibleError(f"instance {name}: {error}") from None
    if message.pooling and message.pooling not in _POOLINGS:
        known = ", ".join(_POOLINGS)
        raise IncompatibleError(f"instance {name}: no pooling {message.pooling[:40]!r}; there are {known}")
    return TextChoices(message.tool_parser, message.reasoning_parser, message.pooling)


def _target(name: str, milliseconds: float) -> float | None:
    if not 0 <= milliseconds < 1e6:
        raise IncompatibleError(f"instance {name} reports a target of {milliseconds:g} ms, which cannot be")
    return milliseconds or None


def _report(report: pb.InstanceReport, received: float) -> InstanceReport:
    """Ages become times of our clock. received: when it came, taken for the time at which it was true."""
    return InstanceReport(
        taken=received,
        accepted=report.accepted,
        phase=phase_from_wire(report.phase),
        switched=received - report.phase_age_s,
        sequences=report.sequences,
        tokens=report.tokens,
        kv_free=report.kv_tokens_free,
        kv_total=report.kv_tokens_total,
        kv_peak=report.kv_tokens_peak,
        expected_output=report.expected_output_tokens,
        window=PrefillWork(report.window.tokens, report.window.pairs),
        left=PrefillWork(report.left.tokens, report.left.pairs),
        window_deadline=received + report.window_left_s if report.HasField("window_left_s") else FOREVER,
        slack=_slack(report.slack, received) if report.HasField("slack") else Slack(),
        serving=report.serving,
        stages_down=report.stages_down,
        policy=report.policy,
        holdings=holdings_from_wire(report.holdings) if report.HasField("holdings") else None,
        transfer=transfer_from_wire(report.kv_transfer),
        barred=frozenset(report.kv_transfer.barred[:MOST_BARRED]),
    )


def _slack(slack: pb.Slack, received: float) -> Slack:
    return Slack(
        count=slack.count,
        mean_due=received + slack.mean_s,
        low_due=received + slack.low_s,
        low_latest=received + slack.low_latest_s,
    )
