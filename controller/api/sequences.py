"""ControllerService for every kind of instance: sequences go in, results and reports come out."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from controller.api.report import WAIT_BETWEEN_S, interval_s
from controller.scheduler.actions import Refusal, Refused
from controller.scheduler.events import NewSequence
from tidepipe.v1 import controller_pb2, controller_pb2_grpc, timeline_pb2, timeline_pb2_grpc
from tidepipe_common.codec.controller import (
    check_loan,
    check_offer,
    check_spec,
    check_values,
    count_sequences,
)
from tidepipe_common.codec.kv_transfer import TICKET_BYTES, handle_from_wire, handle_to_wire, lease_from_wire
from tidepipe_common.codec.prompt import prompt_from_wire
from tidepipe_common.codec.sampling import sampling_from_wire
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.notifier import Notifier
from tidepipe_common.prefix import INLINE_TOKENS, adapter_root, block_keys
from tidepipe_common.rpc.results import ResultsHub, in_turns, stream_results
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.types.kv_transfer import KvHandle

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

Verdict = controller_pb2.SubmitVerdict
Arrivals = tuple[list[NewSequence], dict[str, Refused]]
Teller = Callable[[float], controller_pb2.InstanceReport]
"""Reports at a point in time, one after the other, to one listener."""


class Instance(Protocol):
    """What holds the sequences. changed: is notified when the next report would say something new."""

    draining: bool

    @property
    def hub(self) -> ResultsHub:
        """Their results."""
        ...

    @property
    def changed(self) -> Notifier:
        """See above."""
        ...

    def now(self) -> float:
        """Its clock, seconds."""
        ...

    def submit(
        self, router_id: str, arrivals: Sequence[NewSequence], ordinal: int = 0
    ) -> Mapping[str, Refused]:
        """Take sequences; returns the refusals."""
        ...

    def cancel(self, sequence_id: str) -> None:
        """End a sequence."""
        ...

    def drop(self, sequence_id: str) -> None:
        """End a sequence that nobody will ask for again."""
        ...


class SequencesServicer(controller_pb2_grpc.ControllerServiceServicer):
    """The part that does not depend on what computes. A kind of instance adds what it is, and its reports."""

    def __init__(self, instance: Instance, instance_id: str, incarnation: str) -> None:
        self._instance = instance
        self._instance_id = instance_id
        self._incarnation = incarnation
        self._reading = asyncio.Lock()
        """Held while long prompts are read, so that nobody's cancelling overtakes what it cancels."""

    def _check(self, arrival: NewSequence) -> None:
        """InvalidRequestError says what the instance cannot do."""
        check_values(arrival.prompt, arrival.output, arrival.sampling, self._vocab_size())
        if (fault := arrival.features.fault()) is not None:
            # The predictor refuses all that it is asked together.
            raise InvalidRequestError(f"prompt_features: {fault}", "prompt_features")
        if arrival.adapter and arrival.adapter not in self._adapters():
            raise InvalidRequestError(
                f"{self._instance_id} does not have the adapter {arrival.adapter}", "adapter"
            )

    def _adapters(self) -> Collection[str]:
        """Fingerprints of those that it has."""
        return ()

    def _vocab_size(self) -> int:
        """Of its model; 0: whatever computes looks at token ids itself."""
        return 0

    def _key_blocks(self) -> int:
        """Size of the blocks whose keys are reckoned while a long prompt is read; 0: none."""
        return 0

    def _export(self, sequence_ids: Sequence[str], lease_s: float) -> bool:
        """Have sequences go on elsewhere; False if the instance cannot."""
        return False

    def _lend(
        self, request: controller_pb2.LendPrefixRequest, prefix_root: str, keys: Sequence[bytes]
    ) -> KvHandle | None:
        """Keep the blocks of a beginning for others; None if the instance cannot."""
        return None

    def _fetch_ahead(
        self, request: controller_pb2.FetchPrefixRequest, prefix_root: str, keys: Sequence[bytes]
    ) -> bool:
        """Have blocks fetched that are being computed elsewhere; False if the instance cannot."""
        return False

    def _teller(self, router_id: str) -> Teller:
        raise NotImplementedError

    async def SubmitSequences(  # noqa: N802 (the contract's name)
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
        now = self._instance.now()
        count_sequences(request)
        tokens = sum(len(spec.prompt_token_ids) + len(spec.output_token_ids) for spec in request.sequences)
        if tokens <= INLINE_TOKENS or self._instance.draining:
            return arrivals_from_wire(request, now, check=self._check)
        async with self._reading:
            return await asyncio.to_thread(arrivals_from_wire, request, now, self._key_blocks(), self._check)

    async def CancelSequences(  # noqa: N802
        self, request: controller_pb2.CancelSequencesRequest, context: Context
    ) -> controller_pb2.CancelSequencesResponse:
        """See controller.proto."""
        async with self._reading:
            pass
        await in_turns(self._instance.cancel, request.sequence_ids)
        await in_turns(self._instance.hub.acknowledge, request.ended_sequence_ids)
        return controller_pb2.CancelSequencesResponse()

    async def ExportSequences(  # noqa: N802
        self, request: controller_pb2.ExportSequencesRequest, context: Context
    ) -> controller_pb2.ExportSequencesResponse:
        """See controller.proto."""
        async with self._reading:
            pass
        if not self._export(request.sequence_ids, lease_from_wire(request.lease_ms)):
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"{self._instance_id} hands no sequence over, its KV blocks stay",
            )
        return controller_pb2.ExportSequencesResponse()

    async def LendPrefix(  # noqa: N802
        self, request: controller_pb2.LendPrefixRequest, context: Context
    ) -> controller_pb2.LendPrefixResponse:
        """See controller.proto."""
        check_loan(request)
        root, keys = await self._keys(request)
        handle = self._lend(request, root, keys)
        if handle is None:
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, f"{self._instance_id} lends nothing, its KV blocks stay"
            )
            raise AssertionError("it is aborted")
        return controller_pb2.LendPrefixResponse(kv=handle_to_wire(handle))

    async def FetchPrefix(  # noqa: N802
        self, request: controller_pb2.FetchPrefixRequest, context: Context
    ) -> controller_pb2.FetchPrefixResponse:
        """See controller.proto."""
        check_offer(request)
        root, keys = await self._keys(request)
        if not self._fetch_ahead(request, root, keys):
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, f"{self._instance_id} fetches no KV blocks of others"
            )
        return controller_pb2.FetchPrefixResponse()

    async def _keys(
        self, request: controller_pb2.LendPrefixRequest | controller_pb2.FetchPrefixRequest
    ) -> tuple[str, Sequence[bytes]]:
        """The root of a prompt's keys, and those of a long one, which are reckoned beside the loop."""
        root, size = adapter_root(request.prefix_root, request.adapter), self._key_blocks()
        if size and root and len(request.prompt_token_ids) > INLINE_TOKENS:
            keys = await asyncio.to_thread(block_keys, root, tuple(request.prompt_token_ids), size)
            return root.hex(), keys
        return root.hex(), ()

    async def WatchResults(  # noqa: N802
        self, request: controller_pb2.WatchResultsRequest, context: Context
    ) -> AsyncIterator[controller_pb2.WatchResultsResponse]:
        """See controller.proto."""
        async for message in stream_results(
            self._instance.hub, request, self._incarnation, self._instance.drop
        ):
            yield message

    async def WatchStatus(  # noqa: N802
        self, request: controller_pb2.WatchStatusRequest, context: Context
    ) -> AsyncIterator[controller_pb2.WatchStatusResponse]:
        """See controller.proto."""
        tell, pause_s = self._teller(request.router_id), interval_s(request.interval_ms)
        while True:
            changed = self._instance.changed.next()
            began = time.monotonic()
            yield controller_pb2.WatchStatusResponse(report=tell(began))
            # A report looks at every sequence: with very many it must not take more than a tenth of the time.
            spent = time.monotonic() - began
            await asyncio.sleep(max(WAIT_BETWEEN_S, 10 * spent))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await changed.wait()


async def start_serving(
    server: RpcServer, controller: SequencesServicer, timelines: timeline_pb2_grpc.TimelineServiceServicer
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
    waits = not spec.background
    return NewSequence(
        sequence_id=spec.sequence_id,
        prompt=tuple(spec.prompt_token_ids),
        sampling=sampling_from_wire(spec.sampling),
        output=tuple(spec.output_token_ids),
        deadline=now + spec.deadline_ms / 1000 if spec.deadline_ms else None,
        first_token_due=now + (spec.ttft_ms - spec.age_ms) / 1000 if spec.ttft_ms > 0 and waits else None,
        tpot_s=spec.tpot_ms / 1000 if spec.tpot_ms > 0 and waits else None,
        priority=spec.priority,
        background=spec.background,
        features=prompt_from_wire(spec.prompt_features),
        prefix_root=adapter_root(spec.prefix_root, spec.adapter).hex(),
        adapter=spec.adapter,
        piece_gap_s=spec.piece_gap_ms / 1000,
        trace_context=spec.trace_context,
        kv=handle_from_wire(spec.kv) if spec.HasField("kv") else None,
        ahead=secrets.token_hex(TICKET_BYTES) if spec.passes_on else "",
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
    check: Callable[[NewSequence], None] = lambda arrival: None,
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
            check(arrival)
        except InvalidRequestError as error:
            refused[spec.sequence_id] = Refused(spec.sequence_id, Refusal.INVALID, str(error))
            continue
        if block_size and spec.prefix_root:
            tokens = arrival.prompt + arrival.output
            root = bytes.fromhex(arrival.prefix_root)
            arrival = replace(arrival, keys=block_keys(root, tokens, block_size))
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
