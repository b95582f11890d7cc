"""The queue of prompts that are computed elsewhere and whose KV blocks an instance is to fetch meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import grpc
import structlog

from router.instances.sequence import Placement
from tidepipe_common.types.kv_transfer import KvHandle

AT_ONCE = 8

log = structlog.get_logger()

Send = Callable[[Placement, KvHandle], Awaitable[None]]


class Offers:
    """In front of FetchPrefix. Bounded by what the dispatcher gives all links; nobody waits for an answer."""

    def __init__(self, send: Send) -> None:
        """send: one call; an AioRpcError is no harm: the blocks are fetched later."""
        self._send = send
        self._queue: deque[tuple[Placement, KvHandle]] = deque()
        self._filled = asyncio.Event()

    def add(self, placement: Placement, handle: KvHandle) -> None:
        """Queue a prompt that is being computed at another instance."""
        self._queue.append((placement, handle))
        self._filled.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            await self._filled.wait()
            if not self._queue:
                self._filled.clear()
                continue
            placement, handle = self._queue.popleft()
            try:
                await self._send(placement, handle)
            except grpc.aio.AioRpcError as error:
                log.info(
                    "blocks do not go ahead", sequence=placement.sequence.key, reason=str(error.details())
                )
