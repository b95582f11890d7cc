"""The registration of an instance at its router, and the renewal of its lease."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import structlog

from tidepipe.v1 import router_pb2, router_pb2_grpc
from tidepipe_common.rpc.channel import open_channel

LEASE_MS = 5_000
RENEW_S = 1.0
TIMEOUT_S = 2.0
MAX_FAILURES = 5
"""Renewals in a row that a router other than the first one did not answer."""

log = structlog.get_logger()


class Registration:
    """Announces an instance to a router again and again, so that a restarted router finds it."""

    def __init__(
        self,
        router_address: str,
        *,
        instance_id: str,
        controller_address: str,
        incarnation: str,
        model: str = "",
    ) -> None:
        """See InstanceHandle in router.proto."""
        self._handle = router_pb2.InstanceHandle(
            instance_id=instance_id,
            controller_address=controller_address,
            model=model,
            incarnation=incarnation,
        )
        self._home = self._address = router_address
        self._channel = open_channel(router_address)
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)
        self._known = False
        self._failures = 0
        self._problem = ""

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            try:
                reply = await self._stub.RegisterInstance(
                    router_pb2.RegisterInstanceRequest(handle=self._handle, lease_ms=LEASE_MS),
                    timeout=TIMEOUT_S,
                )
                if not self._known:
                    log.info("registered at the router")
                self._known = True
                self._problem = ""
                self._failures = 0
                if reply.passed_on_to and reply.passed_on_to != self._address:
                    log.info("passed on to another router", router=reply.passed_on_to)
                    await self._turn_to(reply.passed_on_to)
                    continue
            except grpc.aio.AioRpcError as error:
                problem = f"{error.code().name}: {error.details()}"
                if problem != self._problem:
                    log.warning("not registered at the router", reason=problem)
                self._known, self._problem = False, problem
                self._failures += 1
                if self._failures >= MAX_FAILURES and self._address != self._home:
                    # Whoever had it last is gone; the first router knows what to do with it.
                    await self._turn_to(self._home)
            await asyncio.sleep(RENEW_S)

    async def _turn_to(self, address: str) -> None:
        await self._channel.close()
        self._address, self._failures, self._known = address, 0, False
        self._channel = open_channel(address)
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)

    async def withdraw(self) -> None:
        """Tell the router to send nothing new."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._stub.RemoveInstance(
                router_pb2.RemoveInstanceRequest(instance_id=self._handle.instance_id), timeout=TIMEOUT_S
            )

    async def close(self) -> None:
        """Give the channel back."""
        await self._channel.close()
