"""An instance that computes nothing: every sequence gets one token per step. Loads a router only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc
from tidepipe.v1 import router_pb2, router_pb2_grpc, sampling_pb2
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.types.plan import PROTOCOL_VERSION

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

TOKEN = 100
UPDATES_PER_MESSAGE = 512


class SyntheticInstance(pb_grpc.ControllerServiceServicer):
    """ControllerService; all sequences step together, as in one decode batch."""

    def __init__(self, name: str, step_s: float, vocab_size: int, model: str) -> None:
        self._name = name
        self._model = model
        self._step_s = step_s
        self._vocab_size = vocab_size
        self._left: dict[str, tuple[int, int]] = {}
        self._ordinal = 0

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        return pb.DescribeResponse(
            instance_id=self._name,
            incarnation="1",
            model=self._model,
            model_fingerprint="synthetic",
            context_length=1 << 20,
            vocab_size=self._vocab_size,
            protocol_version=PROTOCOL_VERSION,
            max_sequences=65536,
        )

    async def SubmitSequences(  # noqa: N802
        self, request: pb.SubmitSequencesRequest, context: Context
    ) -> pb.SubmitSequencesResponse:
        self._ordinal = request.ordinal
        for spec in request.sequences:
            self._left[spec.sequence_id] = (0, spec.sampling.max_tokens)
        accepted = pb.SubmitVerdict.OUTCOME_ACCEPTED
        verdicts = [
            pb.SubmitVerdict(sequence_id=one.sequence_id, outcome=accepted) for one in request.sequences
        ]
        return pb.SubmitSequencesResponse(verdicts=verdicts)

    async def CancelSequences(  # noqa: N802
        self, request: pb.CancelSequencesRequest, context: Context
    ) -> pb.CancelSequencesResponse:
        for name in request.sequence_ids:
            self._left.pop(name, None)
        return pb.CancelSequencesResponse()

    async def WatchResults(  # noqa: N802
        self, request: pb.WatchResultsRequest, context: Context
    ) -> AsyncIterator[pb.WatchResultsResponse]:
        yield pb.WatchResultsResponse(incarnation="1")
        clock = asyncio.get_running_loop().time
        began, done = clock(), 0
        while True:
            await asyncio.sleep(self._step_s)
            # A device keeps its pace on a busy host too: what it made meanwhile comes together.
            steps = int((clock() - began) / self._step_s) - done
            done += steps
            updates = []
            for name, (offset, limit) in list(self._left.items()):
                count = min(steps, limit - offset)
                update = pb.SequenceUpdate(sequence_id=name, token_offset=offset, token_ids=[TOKEN] * count)
                if offset + count >= limit:
                    update.finish_reason = sampling_pb2.FINISH_REASON_LENGTH
                    del self._left[name]
                else:
                    self._left[name] = (offset + count, limit)
                updates.append(update)
            for begin in range(0, len(updates), UPDATES_PER_MESSAGE):
                yield pb.WatchResultsResponse(updates=updates[begin : begin + UPDATES_PER_MESSAGE])

    async def WatchStatus(  # noqa: N802
        self, request: pb.WatchStatusRequest, context: Context
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        while True:
            yield pb.WatchStatusResponse(
                report=pb.InstanceReport(
                    incarnation="1",
                    serving=True,
                    accepted=self._ordinal,
                    sequences=len(self._left),
                    tokens=100 * len(self._left),
                    kv_tokens_total=1 << 30,
                    kv_tokens_free=1 << 30,
                    costs=pb.StepCosts(stages=1, step_tokens=2048),
                )
            )
            await asyncio.sleep(0.1)


async def serve(name: str, router: str, step_s: float, vocab_size: int, model: str) -> None:
    """Register at a router and serve until cancelled."""
    server = RpcServer("127.0.0.1:0")
    pb_grpc.add_ControllerServiceServicer_to_server(
        SyntheticInstance(name, step_s, vocab_size, model),  # type: ignore[abstract]  # others: unimplemented
        server.server,
    )
    address = await server.start([pb.DESCRIPTOR.services_by_name["ControllerService"]])
    handle = router_pb2.InstanceHandle(instance_id=name, controller_address=address, incarnation="1")
    async with open_channel(router) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        while True:
            await stub.RegisterInstance(
                router_pb2.RegisterInstanceRequest(handle=handle, lease_ms=60_000), timeout=20
            )
            await asyncio.sleep(10)
