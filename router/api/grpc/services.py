"""The RPC services of a router."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TypeAlias

from router.api.grpc.admin import AdminServicer
from router.api.grpc.cluster import RouterServicer
from router.api.grpc.inference import InferenceServicer
from router.api.grpc.timeline import TimelineServicer
from router.api.grpc.upstream import UpstreamServicer
from tidepipe.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    predictor_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    timeline_pb2,
    timeline_pb2_grpc,
)
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.server import RpcServer

Predictor: TypeAlias = "predictor_pb2_grpc.PredictorServiceAsyncStub"

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    router_pb2.DESCRIPTOR.services_by_name["RouterService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
    controller_pb2.DESCRIPTOR.services_by_name["ControllerService"],
    timeline_pb2.DESCRIPTOR.services_by_name["TimelineService"],
)


def add_services(
    rpc: RpcServer,
    inference: InferenceServicer,
    instances: RouterServicer,
    admin: AdminServicer,
    timelines: TimelineServicer,
    upstream: UpstreamServicer,
) -> None:
    """Offer all of SERVICES."""
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, rpc.server)
    router_pb2_grpc.add_RouterServiceServicer_to_server(instances, rpc.server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, rpc.server)
    timeline_pb2_grpc.add_TimelineServiceServicer_to_server(timelines, rpc.server)
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(upstream, rpc.server)


@contextlib.asynccontextmanager
async def open_predictor(address: str) -> AsyncIterator[Predictor | None]:
    """The predictor, to be asked how it stands; None for an empty address."""
    if not address:
        yield None
        return
    async with open_channel(address) as channel:
        yield predictor_pb2_grpc.PredictorServiceStub(channel)
