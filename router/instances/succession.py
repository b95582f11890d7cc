"""What a router learns from the one that it succeeds, before it takes its place."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import structlog

from router.instances.link import InstanceAddress
from router.instances.registry import InstanceRegistry
from tidepipe.v1 import router_pb2, router_pb2_grpc
from tidepipe_common.errors import TidePipeError
from tidepipe_common.rpc.channel import open_channel

ASK_TIMEOUT_S = 5.0
LEASE_S = 20.0
"""Until its instances have found the new router by themselves, which they do when the old one hangs up."""
CONNECT_S = 10.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}

log = structlog.get_logger()


async def adopt_instances(registry: InstanceRegistry, listen: str) -> None:
    """Connect to the instances of the router that listens there; if it says none, they come by themselves."""
    predecessor = on_this_machine(listen)
    try:
        async with open_channel(predecessor) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            reply = await stub.ListInstances(router_pb2.ListInstancesRequest(), timeout=ASK_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        log.warning("no instances are known from before", router=predecessor, reason=error.details())
        return
    adopted = 0
    for handle in reply.handles:
        announced = InstanceAddress(handle.instance_id, handle.controller_address, handle.incarnation)
        try:
            await registry.register(announced, LEASE_S)
            adopted += 1
        except TidePipeError as error:
            log.warning("not adopted", instance=handle.instance_id, reason=str(error))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_S):
            while len(registry.connected) < adopted:  # noqa: ASYNC110 (links say it to nobody else)
                await asyncio.sleep(0.02)
    log.info("instances adopted", router=predecessor, instances=adopted, connected=len(registry.connected))


def on_this_machine(listen: str) -> str:
    """HOST:PORT at which a process that listens so is called from beside it, and its certificate is for."""
    host, _, port = listen.rpartition(":")
    return f"{_LOOPBACK.get(host, host)}:{port}"
