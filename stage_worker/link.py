"""The link to the next stage: activations leave in the background while the next step computes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

import grpc

from tidepipe.v1 import stage_pb2, stage_pb2_grpc
from tidepipe_common.codec.plan import times_to_wire
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.types.plan import StageTimes

MAX_QUEUED = 64
"""Plans, or activations, that may wait at a stage; far more than a controller ever has in flight."""


class NextStageLink:
    """Sends activations of one epoch to the next stage, in order, over one stream."""

    def __init__(self, address: str, epoch: int, max_message_bytes: int) -> None:
        self._address = address
        self._epoch = epoch
        self._max_message_bytes = max_message_bytes
        self._queue: asyncio.Queue[stage_pb2.ForwardRequest | None] = asyncio.Queue(MAX_QUEUED)

    def send(
        self, step_id: int, hidden: bytes | memoryview, tokens: int, times: Iterable[StageTimes]
    ) -> None:
        """Queue the activations of a step; asyncio.QueueFull if the next stage has stopped taking them.

        times: that go along, see `StepReport.before`.
        """
        message = stage_pb2.ForwardRequest(
            epoch=self._epoch,
            step_id=step_id,
            hidden=bytes(hidden),
            tokens=tokens,
            before=times_to_wire(times),
        )
        self._queue.put_nowait(message)

    async def run(self) -> None:
        """Serve the link until cancelled. Raises AioRpcError when it breaks.

        The stream has no deadline of its own: it lives as long as the epoch, and the controller's lease on
        every stage and on every step bounds how long a silent link can go unnoticed.
        """
        async with open_channel(self._address, max_message_bytes=self._max_message_bytes) as channel:
            stub = stage_pb2_grpc.StageServiceStub(channel)
            call = stub.Forward(self._messages(), wait_for_ready=False)
            try:
                await call
            finally:
                # A call that the next stage has ended leaves gRPC's task waiting for what it is to send next.
                with contextlib.suppress(asyncio.QueueFull):
                    self._queue.put_nowait(None)
            raise ConnectionError(f"the next stage at {self._address} ended the stream")

    async def _messages(self) -> AsyncIterator[stage_pb2.ForwardRequest]:
        # The first message opens the stream at once, so that a wrong address shows before the first step.
        yield stage_pb2.ForwardRequest(epoch=self._epoch)
        while (message := await self._queue.get()) is not None:
            yield message


def describe(error: BaseException) -> str:
    """One line about why a link broke."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
