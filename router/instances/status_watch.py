"""Keeps the stream of an instance's reports open."""

from __future__ import annotations

import asyncio
from typing import Protocol

import grpc

from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc

WATCH_TIMEOUT_S = 3600.0
"""The stream is renewed now and then, so that no call is without a deadline."""
SILENCE_S = 2.0
"""Many times the interval between reports: longer, and the instance's state is unknown."""
RETRY_S = 0.2


class StatusHost(Protocol):
    """The link, as its status watch sees it. No call blocks."""

    @property
    def report_interval_s(self) -> float:
        """Time between two reports at most, at present."""
        ...

    def reported(self, report: pb.InstanceReport) -> None:
        """A report came."""
        ...

    def silent(self) -> None:
        """There are no reports any more."""
        ...


class StatusWatch:
    """Opens WatchStatus again after every break, and when reports are wanted more or less often."""

    def __init__(
        self,
        stub: pb_grpc.ControllerServiceAsyncStub,
        router_id: str,
        connected: asyncio.Event,
        host: StatusHost,
    ) -> None:
        """connected: set while results come."""
        self._stub = stub
        self._router_id = router_id
        self._connected = connected
        self._host = host

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._connected.wait()
            if not await self._watch():
                self._host.silent()
                await asyncio.sleep(RETRY_S)

    async def _watch(self) -> bool:
        """Take reports in until the stream ends. True: open it again at once, with another interval."""
        interval_s = self._host.report_interval_s
        call = self._stub.WatchStatus(
            pb.WatchStatusRequest(router_id=self._router_id, interval_ms=round(1000 * interval_s)),
            timeout=WATCH_TIMEOUT_S,
        )
        try:
            while interval_s == self._host.report_interval_s:
                async with asyncio.timeout(SILENCE_S):
                    message = await call.read()
                if not isinstance(message, pb.WatchStatusResponse):
                    return False
                self._host.reported(message.report)
            return True
        except (grpc.aio.AioRpcError, TimeoutError):
            return False
        finally:
            call.cancel()
