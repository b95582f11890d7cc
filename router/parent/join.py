"""Being an instance of an overall router, one for each model."""

from __future__ import annotations

import asyncio

from router.background import background
from router.instances.link import InstanceAddress
from router.models.model import ServedModel
from router.parent.host import UpstreamHosts
from tidepipe_common.notifier import Notifier
from tidepipe_common.rpc.registration import Registration


async def join(overall: str, address: str, incarnation: str, hosts: UpstreamHosts, changed: Notifier) -> None:
    """Keep leases at the router at `overall`, of each model from its first instance here on, until cancelled.

    address: HOST:PORT at which it reaches us.
    """
    joined: dict[ServedModel, asyncio.Task[None]] = {}
    async with background() as start:
        while True:
            noted = changed.next()
            for model in hosts.models:
                if model.ready and model not in joined:
                    ours = InstanceAddress(hosts.instance_id(model), address, incarnation)
                    joined[model] = start(_stay(overall, ours))
            for model in joined.keys() - set(hosts.models):
                joined.pop(model).cancel()
            await noted.wait()


async def _stay(overall: str, ours: InstanceAddress) -> None:
    registration = Registration(
        overall,
        instance_id=ours.instance_id,
        controller_address=ours.address,
        incarnation=ours.incarnation,
    )
    try:
        await registration.run()
    finally:
        await registration.withdraw()
        await registration.close()
