"""`tidepipe up`: a local cluster until Ctrl-C."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tidepipe.cli.cluster_options import cluster_options
from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.run import run
from tidepipe.cli.trace import TraceFile, save_trace


@cluster_options
def up(trace: TraceFile = None, *, cluster: dict[str, Any]) -> None:
    """Start a local cluster of real processes and keep it alive until Ctrl-C.

    Prints one line `ready http=HOST:PORT grpc=HOST:PORT` when every service is serving.
    """
    run(_serve(cluster, trace), interrupted=SUCCESS)


async def _serve(settings: dict[str, Any], trace: Path | None) -> int:
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.cli.target import start_cluster

    async with start_cluster(settings) as cluster:
        print(f"ready http={cluster.http_address} grpc={cluster.grpc_address}", flush=True)
        try:
            await cluster.wait()
        finally:
            if trace is not None:
                await _save(cluster.grpc_address, trace)
    return SUCCESS


async def _save(endpoint: str, trace: Path) -> None:
    """A trace that cannot be had must not hide why the cluster ended."""
    from common.errors import TidePipeError
    from tidepipe.client.async_client import AsyncClient

    try:
        async with AsyncClient(endpoint) as client:
            await save_trace(client, trace)
    except TidePipeError as error:
        print(f"no trace: {error}", file=sys.stderr)
