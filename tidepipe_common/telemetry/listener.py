"""The `/metrics` port of a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tidepipe_common.http.server import HttpServer
from tidepipe_common.security.principals import METRICS
from tidepipe_common.telemetry.telemetry import Telemetry

STOP_GRACE_S = 1.0


def metrics_route(telemetry: Telemetry) -> Route:
    """`/metrics`, for a service that has an HTTP port already."""

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(telemetry.registry), headers={"content-type": content_type})

    return Route("/metrics", metrics, methods=["GET"])


@contextlib.asynccontextmanager
async def serve_metrics(
    telemetry: Telemetry, listen: str, port: int | None, *, shared_port: bool = False
) -> AsyncIterator[str]:
    """Serve `/metrics` inside the `with`, on the host of `listen`. Its HOST:PORT, or "" if port is None.

    shared_port: a successor may listen beside it.

    ConfigError if the port cannot be had.
    """
    if port is None:
        yield ""
        return
    host = listen.rpartition(":")[0]
    server = HttpServer(
        Starlette(routes=[metrics_route(telemetry)]),
        f"{host}:{port}",
        grace_s=STOP_GRACE_S,
        rule=METRICS,
        shared_port=shared_port,
    )
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.run(), name="metrics")
        try:
            yield server.address
        finally:
            server.stop()
            await asyncio.wait([serving])
