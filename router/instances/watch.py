"""Keeps the stream of an instance's results open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import grpc

from router.instances.intake import ResultIntake
from router.instances.placement import PlacementTable, Stay
from router.instances.wire import position
from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc

GREETING_TIMEOUT_S = 5.0
WATCH_TIMEOUT_S = 3600.0
"""The stream is renewed now and then, so that no call is without a deadline."""
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0


class WatchHost(Protocol):
    """The link, as its watch sees it."""

    async def greeted(self, incarnation: str) -> None:
        """The stream is open. Raises AioRpcError to have it opened anew."""
        ...

    def broken(self, reason: str) -> None:
        """The stream has ended; it will be opened again."""
        ...


class ResultWatch:
    """Opens WatchResults again after every break, saying where the router stands."""

    def __init__(
        self,
        stub: pb_grpc.ControllerServiceAsyncStub,
        router_id: str,
        placements: PlacementTable,
        intake: ResultIntake,
        host: WatchHost,
        clock: Callable[[], float],
    ) -> None:
        self._stub = stub
        self._router_id = router_id
        self._placements = placements
        self._intake = intake
        self._host = host
        self._clock = clock

    async def run(self) -> None:
        """Watch until cancelled, or until the host refuses the instance."""
        retry_s = FIRST_RETRY_S
        while True:
            began = self._clock()
            try:
                if await self._watch():
                    continue
                reason = "the instance ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except TimeoutError:
                reason = f"no first message within {GREETING_TIMEOUT_S:g} s"
            self._host.broken(reason)
            if self._clock() - began > LAST_RETRY_S:
                retry_s = FIRST_RETRY_S
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)

    async def _watch(self) -> bool:
        """Take results in until the stream ends. True: open it again at once, because of a gap."""
        # Also those whose submission broke or is under way: the instance ends what is not named here.
        begun = [position(placement) for placement in self._placements if placement.stay is not Stay.QUEUED]
        call = self._stub.WatchResults(
            pb.WatchResultsRequest(router_id=self._router_id, positions=begun), timeout=WATCH_TIMEOUT_S
        )
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                message = await call.read()
            if not isinstance(message, pb.WatchResultsResponse):
                return False
            await self._host.greeted(message.incarnation)
            while isinstance(message, pb.WatchResultsResponse):
                self._intake.lose(message.lost_sequence_ids)
                # Updates behind a gap are taken in as well: they belong to other sequences.
                fitting = [self._intake.take(update) for update in message.updates]
                if not all(fitting):
                    return True
                message = await call.read()
            return False
        finally:
            call.cancel()
