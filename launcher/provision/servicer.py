"""ProvisionerService over any provisioner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from launcher.provision.provisioner import InstanceProvisioner, ProvisionedInstance
from tidepipe.v1 import provisioner_pb2 as pb
from tidepipe.v1 import provisioner_pb2_grpc as pb_grpc
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.security.credentials import Credentials

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = pb.DESCRIPTOR.services_by_name["ProvisionerService"]


class ProvisionerServicer(pb_grpc.ProvisionerServiceServicer):
    """Routers call it."""

    def __init__(self, provisioner: InstanceProvisioner) -> None:
        self._provisioner = provisioner

    async def StartInstance(  # noqa: N802
        self, request: pb.StartInstanceRequest, context: Context
    ) -> pb.StartInstanceResponse:
        """One more."""
        return pb.StartInstanceResponse(instance=_to_wire(await self._provisioner.start_instance()))

    async def StopInstance(  # noqa: N802
        self, request: pb.StopInstanceRequest, context: Context
    ) -> pb.StopInstanceResponse:
        """One fewer."""
        await self._provisioner.stop_instance(request.instance_id)
        return pb.StopInstanceResponse()

    async def ListProvisioned(  # noqa: N802
        self, request: pb.ListProvisionedRequest, context: Context
    ) -> pb.ListProvisionedResponse:
        """All of them, and the room for more."""
        # It looks at the machine's memory and at processes.
        room = await asyncio.to_thread(self._provisioner.room)
        return pb.ListProvisionedResponse(
            instances=[_to_wire(instance) for instance in self._provisioner.instances()],
            room=None if room is None else room.more,
            room_reason="" if room is None else room.why,
        )


@contextlib.asynccontextmanager
async def serve_provisioner(
    provisioner: InstanceProvisioner, listen: str, credentials: Credentials | None = None
) -> AsyncIterator[str]:
    """Serve while inside; the address. ConfigError if the port cannot be had.

    credentials: of the provisioner; None for those of this process.
    """
    server = RpcServer(listen, credentials=credentials)
    pb_grpc.add_ProvisionerServiceServicer_to_server(ProvisionerServicer(provisioner), server.server)
    address = await server.start([SERVICE])
    await server.set_serving(True)
    try:
        yield address
    finally:
        await server.stop(grace_s=0.5)


def _to_wire(instance: ProvisionedInstance) -> pb.ProvisionedInstance:
    return pb.ProvisionedInstance(
        instance_id=instance.instance_id,
        controller_address=instance.controller_address,
        place=instance.place,
    )
