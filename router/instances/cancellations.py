"""Tells an instance which sequences nobody waits for any more."""

from __future__ import annotations

import asyncio

import grpc

from router.instances.handover import RETRY_S
from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc

CANCEL_TIMEOUT_S = 5.0
MAX_BATCH = 1024
ACKNOWLEDGE_S = 1.0
"""Ends are acknowledged together, so seldom."""


class Cancellations:
    """Queue in front of CancelSequences. Bounded by the sequences that it was given."""

    def __init__(self, stub: pb_grpc.ControllerServiceAsyncStub, connected: asyncio.Event) -> None:
        self._stub = stub
        self._connected = connected
        self._ids: dict[str, None] = {}
        self._ended: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, placement_id: str) -> None:
        """Queue the end of a stay."""
        self._ids[placement_id] = None
        self._filled.set()
        self._idle.clear()

    def acknowledge(self, placement_id: str) -> None:
        """Queue that we have the end of a stay, which the instance need not keep any longer. No hurry."""
        self._ended[placement_id] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACKNOWLEDGE_S, self._acknowledge_now)

    def _acknowledge_now(self) -> None:
        self._timer = None
        self._filled.set()

    def forget(self) -> None:
        """The instance has restarted: it knows none of them."""
        self._ids.clear()
        self._ended.clear()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._filled.wait()
            await self._connected.wait()
            batch = list(self._ids)[:MAX_BATCH]
            ended = list(self._ended)[:MAX_BATCH]
            if not (batch or ended):
                self._filled.clear()
                self._idle.set()
                continue
            try:
                await self._stub.CancelSequences(
                    pb.CancelSequencesRequest(sequence_ids=batch, ended_sequence_ids=ended),
                    timeout=CANCEL_TIMEOUT_S,
                )
            except grpc.aio.AioRpcError:
                await asyncio.sleep(RETRY_S)
                continue
            for placement_id in batch:
                self._ids.pop(placement_id, None)
            for placement_id in ended:
                self._ended.pop(placement_id, None)

    async def drained(self) -> None:
        """Return when all that was queued has been sent."""
        await self._idle.wait()
