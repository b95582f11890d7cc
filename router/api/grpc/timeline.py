"""TimelineService of the whole cluster: every instance's, one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from router.instances.registry import InstanceRegistry
from router.parent.host import UpstreamHosts
from tidepipe.v1 import timeline_pb2 as pb
from tidepipe.v1 import timeline_pb2_grpc
from tidepipe_common.errors import TidePipeError
from tidepipe_common.rpc.called import called_instance

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

TIMEOUT_S = 10.0
"""For one instance."""


class TimelineServicer(timeline_pb2_grpc.TimelineServiceServicer):
    """Passes the instances' pieces on. Who does not answer in time is named with the reason."""

    def __init__(self, registry: InstanceRegistry, hosts: UpstreamHosts) -> None:
        self._registry = registry
        self._hosts = hosts

    async def GetTimeline(  # noqa: N802 (the contract's name)
        self, request: pb.GetTimelineRequest, context: Context
    ) -> AsyncIterator[pb.GetTimelineResponse]:
        """See timeline.proto."""
        called = called_instance(context)
        for link in list(self._hosts.find(called).model.links if called else self._registry):
            try:
                async for piece in link.client.timeline(request, TIMEOUT_S):
                    yield piece
            except TidePipeError as error:
                yield pb.GetTimelineResponse(instance_id=link.instance_id, error=str(error))
