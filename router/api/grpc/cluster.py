"""RouterService: how instances come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.instances.handoff import InstanceHandoff
from router.instances.link import InstanceAddress
from router.instances.registry import InstanceRegistry
from tidepipe.v1 import router_pb2 as pb
from tidepipe.v1 import router_pb2_grpc as pb_grpc
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_ADDRESS_CHARACTERS, MAX_NAME_CHARACTERS, check_characters
from tidepipe_common.numerals import host_and_port

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

MIN_LEASE_MS = 100
MAX_LEASE_MS = 600_000


class RouterServicer(pb_grpc.RouterServiceServicer):
    """Controllers announce themselves here."""

    def __init__(self, registry: InstanceRegistry, handoff: InstanceHandoff, router_id: str) -> None:
        self._registry = registry
        self._handoff = handoff
        self._router_id = router_id

    async def RegisterInstance(  # noqa: N802
        self, request: pb.RegisterInstanceRequest, context: Context
    ) -> pb.RegisterInstanceResponse:
        """Take an instance in, or renew its lease."""
        handle = request.handle
        for name in ("instance_id", "controller_address", "model", "incarnation"):
            most = MAX_NAME_CHARACTERS if name == "model" else MAX_ADDRESS_CHARACTERS
            check_characters(name, getattr(handle, name), most)
        if not handle.instance_id or not handle.instance_id.isprintable():
            raise InvalidRequestError("instance_id must be printable and not empty", "instance_id")
        if host_and_port(handle.controller_address) is None:
            raise InvalidRequestError(
                f"controller_address must be HOST:PORT, got {handle.controller_address!r}",
                "controller_address",
            )
        if not (MIN_LEASE_MS <= request.lease_ms <= MAX_LEASE_MS):
            raise InvalidRequestError(
                f"lease_ms must be in [{MIN_LEASE_MS}, {MAX_LEASE_MS}], got {request.lease_ms}", "lease_ms"
            )
        announced = InstanceAddress(handle.instance_id, handle.controller_address, handle.incarnation)
        if request.passed_on:
            self._handoff.take_back(handle.instance_id)
        elsewhere = self._handoff.whereabouts(handle.instance_id)
        await self._registry.register(announced, request.lease_ms / 1000)
        return pb.RegisterInstanceResponse(router_id=self._router_id, passed_on_to=elsewhere)

    async def ListInstances(  # noqa: N802
        self, request: pb.ListInstancesRequest, context: Context
    ) -> pb.ListInstancesResponse:
        """For a successor."""
        handles = [
            pb.InstanceHandle(
                instance_id=link.instance_id,
                controller_address=link.announced.address,
                incarnation=link.announced.incarnation,
            )
            for link in self._registry
            if link.connected and link.lease_valid and not link.draining
        ]
        return pb.ListInstancesResponse(handles=handles)

    async def RemoveInstance(  # noqa: N802
        self, request: pb.RemoveInstanceRequest, context: Context
    ) -> pb.RemoveInstanceResponse:
        """Let an instance go, once it has finished what it has."""
        return pb.RemoveInstanceResponse(unfinished=self._registry.remove(request.instance_id))
