"""Knowledge of instances that passes between a router and its successor."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from router.instances.link import InstanceAddress
from router.instances.registry import InstanceRegistry
from router.instances.router_client import instances_of
from router.instances.served_model import NotYetError
from tidepipe_common.errors import TidePipeError

LEASE_S = 20.0
"""Until its instances have found the new router by themselves, which they do when the old one hangs up."""
CONNECT_S = 10.0
TOKENIZER_S = 30.0
"""For the tokenizer of a further model, without which its instances are not taken."""
RETRY_S = 0.2
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
    # Beside each other, as each may wait for the tokenizer of another model.
    adopted = sum(await asyncio.gather(*(_adopted(registry, announced) for announced in known)))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_S):
            while len(registry.connected) < adopted:  # noqa: ASYNC110 (links say it to nobody else)
                await asyncio.sleep(0.02)
    log.info("instances adopted", router=predecessor, instances=adopted, connected=len(registry.connected))


async def _adopted(registry: InstanceRegistry, announced: InstanceAddress) -> bool:
    """False, and a line in the log, if it cannot be had now, or not soon."""
    loop = asyncio.get_running_loop()
    end = loop.time() + TOKENIZER_S
    while True:
        try:
            await registry.register(announced, LEASE_S)
        except TidePipeError as error:
            if isinstance(error, NotYetError) and loop.time() < end:
                await asyncio.sleep(RETRY_S)
                continue
            log.warning("not adopted", instance=announced.instance_id, reason=str(error))
            return False
        return True


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
