"""Keeps the stream of an instance's reports open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc

WATCH_TIMEOUT_S = 3600.0
"""The stream is renewed now and then, so that no call is without a deadline."""
SILENCE_S = 2.0
"""Many times the interval between reports: longer, and the instance's state is unknown."""
RETRY_S = 0.2


class StatusWatch:
    """Opens WatchStatus again after every break."""

    def __init__(
        self,
        stub: pb_grpc.ControllerServiceAsyncStub,
        router_id: str,
        connected: asyncio.Event,
        report: Callable[[pb.InstanceReport], None],
        silent: Callable[[], None],
    ) -> None:
        """connected: set while results come. report: takes each report. silent: there are none any more."""
        self._stub = stub
        self._router_id = router_id
        self._connected = connected
        self._report = report
        self._silent = silent

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._connected.wait()
            call = self._stub.WatchStatus(
                pb.WatchStatusRequest(router_id=self._router_id), timeout=WATCH_TIMEOUT_S
            )
            try:
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        message = await call.read()
                    if not isinstance(message, pb.WatchStatusResponse):
                        break
                    self._report(message.report)
            except (grpc.aio.AioRpcError, TimeoutError):
                pass
            finally:
                call.cancel()
            self._silent()
            await asyncio.sleep(RETRY_S)
