"""Being an instance of an overall router."""

from __future__ import annotations

from common.pulse import Pulse
from common.rpc.registration import Registration
from router.instances.available import AvailableModels
from tidepipe.v1 import router_pb2


async def join(
    overall: str, handle: router_pb2.InstanceHandle, models: AvailableModels, changed: Pulse
) -> None:
    """Keep a lease at the router at `overall`, from the first instance here on, until cancelled."""
    while True:
        beat = changed.next()
        if models.ready:
            break
        await beat.wait()
    registration = Registration(overall, handle)
    try:
        await registration.run()
    finally:
        await registration.withdraw()
        await registration.close()
