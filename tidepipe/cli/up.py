"""`tidepipe up`: a local cluster until Ctrl-C."""

from __future__ import annotations

from typing import Any

from tidepipe.cli.cluster_options import cluster_options
from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.run import run


@cluster_options
def up(*, cluster: dict[str, Any]) -> None:
    """Start a local cluster of real processes and keep it alive until Ctrl-C.

    Prints one line `ready http=HOST:PORT grpc=HOST:PORT` when every service is serving.
    """
    run(_serve(cluster), interrupted=SUCCESS)


async def _serve(settings: dict[str, Any]) -> int:
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.cli.target import start_cluster

    async with start_cluster(settings) as cluster:
        print(f"ready http={cluster.http_address} grpc={cluster.grpc_address}", flush=True)
        await cluster.wait()
    return SUCCESS
