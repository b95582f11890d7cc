"""Being an instance of an overall router."""

from __future__ import annotations

from router.instances.link import InstanceAddress
from router.instances.registry import AvailableModels
from tidepipe_common.notifier import Notifier
from tidepipe_common.rpc.registration import Registration


async def join(overall: str, ours: InstanceAddress, models: AvailableModels, changed: Notifier) -> None:
    """Keep a lease at the router at `overall`, from the first instance here on, until cancelled.

    ours: name and address that we announce.
    """
    while True:
        notify_all = changed.next()
        if models.ready:
            break
        await notify_all.wait()
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
