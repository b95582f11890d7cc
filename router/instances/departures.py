"""The queues of stays that end, in front of ExportSequences and CancelSequences."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

import grpc
import structlog

from router.instances.controller_client import MAX_BATCH_SEQUENCES, MAX_FAILURES, RETRY_S, ControllerClient
from tidepipe_common.rpc.status import TRANSIENT

MAX_CANCELLED = 1024
ACKNOWLEDGE_S = 1.0
"""Ends are acknowledged together, so seldom."""

log = structlog.get_logger()


class Departures:
    """The queue in front of ExportSequences. Bounded by the sequences that the instance was given."""

    def __init__(self, client: ControllerClient, connected: asyncio.Event) -> None:
        self._client = client
        self._connected = connected
        self._ids: deque[str] = deque()
        self._filled = asyncio.Event()

    def add(self, placement_ids: Iterable[str]) -> None:
        """Queue sequences that are to go on elsewhere."""
        self._ids.extend(placement_ids)
        self._filled.set()

    async def run(self) -> None:
        """Send until cancelled."""
        tries = 0
        while True:
            await self._filled.wait()
            await self._connected.wait()
            batch = list(self._ids)[:MAX_BATCH_SEQUENCES]
            if not batch:
                self._filled.clear()
                continue
            try:
                await self._client.export(batch)
            except grpc.aio.AioRpcError as error:
                tries += 1
                if error.code() in TRANSIENT and tries < MAX_FAILURES:
                    await asyncio.sleep(RETRY_S)
                    continue
                # They end where they are, or are lost with it.
                log.warning("sequences are not handed over", size=len(batch), reason=error.details())
            tries = 0
            for _ in batch:
                self._ids.popleft()


class Cancellations:
    """The queue in front of CancelSequences: stays that nobody waits for any more, and ends that we have.

    Bounded by the sequences that the instance was given.
    """

    def __init__(self, client: ControllerClient, connected: asyncio.Event) -> None:
        self._client = client
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
            batch = list(self._ids)[:MAX_CANCELLED]
            ended = list(self._ended)[:MAX_CANCELLED]
            if not (batch or ended):
                self._filled.clear()
                self._idle.set()
                continue
            try:
                await self._client.cancel(batch, ended)
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
