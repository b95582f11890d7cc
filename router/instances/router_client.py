"""The client of another router's RouterService, in domain types."""

from __future__ import annotations

from router.instances.link import InstanceAddress
from tidepipe.v1 import router_pb2 as pb
from tidepipe.v1 import router_pb2_grpc as pb_grpc
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import translated

PASS_TIMEOUT_S = 5.0
LIST_TIMEOUT_S = 5.0


async def pass_instance(router: str, instance: InstanceAddress, model: str, lease_s: float) -> None:
    """Give an instance to the router at HOST:PORT, with its first lease.

    TidePipeError if it does not take it, UnavailableError if it does not answer.
    """
    handle = pb.InstanceHandle(
        instance_id=instance.instance_id,
        controller_address=instance.address,
        model=model,
        incarnation=instance.incarnation,
    )
    request = pb.RegisterInstanceRequest(handle=handle, lease_ms=round(1000 * lease_s), passed_on=True)
    async with open_channel(router) as channel:
        with translated(f"router {router} does not take it"):
            await pb_grpc.RouterServiceStub(channel).RegisterInstance(request, timeout=PASS_TIMEOUT_S)


async def instances_of(router: str) -> list[InstanceAddress]:
    """What the router at HOST:PORT has. TidePipeError if it does not say."""
    async with open_channel(router) as channel:
        with translated():
            reply = await pb_grpc.RouterServiceStub(channel).ListInstances(
                pb.ListInstancesRequest(), timeout=LIST_TIMEOUT_S
            )
    return [
        InstanceAddress(one.instance_id, one.controller_address, one.incarnation) for one in reply.handles
    ]
