"""TimelineService of one instance."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from controller.runtime.live import LiveInstance
from tidepipe.v1 import timeline_pb2 as pb
from tidepipe.v1 import timeline_pb2_grpc
from tidepipe_common.codec.timeline import timeline_to_wire

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class TimelineServicer(timeline_pb2_grpc.TimelineServiceServicer):
    """What the instance has done lately."""

    def __init__(self, instance: LiveInstance, instance_id: str) -> None:
        self._instance = instance
        self._instance_id = instance_id

    async def GetTimeline(  # noqa: N802 (the contract's name)
        self, request: pb.GetTimelineRequest, context: Context
    ) -> AsyncIterator[pb.GetTimelineResponse]:
        """See timeline.proto."""
        now = self._instance.now()
        since = now - request.seconds if request.seconds > 0 else 0.0
        timeline = self._instance.activity.timeline(self._instance_id, since, time.time() - now)
        for piece in timeline_to_wire(timeline):
            yield piece
