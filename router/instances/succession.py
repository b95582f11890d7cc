"""What a router learns of instances from the one that it succeeds, and later from its own successor."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from router.instances.registry import InstanceRegistry
from router.instances.router_client import instances_of
from tidepipe_common.errors import TidePipeError

LEASE_S = 20.0
"""Until its instances have found the new router by themselves, which they do when the old one hangs up."""
CONNECT_S = 10.0
FOLLOW_S = 1.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}

log = structlog.get_logger()


async def adopt_instances(registry: InstanceRegistry, listen: str) -> None:
    """Connect to the instances of the router that listens there; if it says none, they come by themselves."""
    predecessor = on_this_machine(listen)
    try:
        known = await instances_of(predecessor)
    except TidePipeError as error:
        log.warning("no instances are known from before", router=predecessor, reason=str(error))
        return
    adopted = 0
    for announced in known:
        try:
            await registry.register(announced, LEASE_S)
            adopted += 1
        except TidePipeError as error:
            log.warning("not adopted", instance=announced.instance_id, reason=str(error))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_S):
            while len(registry.connected) < adopted:  # noqa: ASYNC110 (links say it to nobody else)
                await asyncio.sleep(0.02)
    log.info("instances adopted", router=predecessor, instances=adopted, connected=len(registry.connected))


async def follow_successor(registry: InstanceRegistry, listen: str) -> None:
    """Know the instances that the router's successor knows, until cancelled.

    They announce themselves to the successor alone, where ports are one: their leases would end here, and one
    that was started anew would never be heard of, while answers are still on their way.
    """
    successor = on_this_machine(listen)
    while True:
        try:
            for announced in await instances_of(successor):
                with contextlib.suppress(TidePipeError):
                    await registry.register(announced, LEASE_S)
        except TidePipeError as error:
            log.debug("the successor does not say its instances", router=successor, reason=str(error))
        await asyncio.sleep(FOLLOW_S)


def on_this_machine(listen: str) -> str:
    """HOST:PORT at which a process that listens so is called from beside it, and its certificate is for."""
    host, _, port = listen.rpartition(":")
    return f"{_LOOPBACK.get(host, host)}:{port}"
