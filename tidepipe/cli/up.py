"""`tidepipe up`: a local cluster until Ctrl-C."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tidepipe.cli.cluster_options import cluster_options
from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.run import run
from tidepipe.cli.trace import TraceFile, save_trace
from tidepipe_common.errors import ConfigError
from tidepipe_common.extras import SERVER, require

if TYPE_CHECKING:
    from launcher.local import LocalCluster


@cluster_options
def up(context: typer.Context, trace: TraceFile = None, *, cluster: dict[str, Any]) -> None:
    """Start a local cluster of real processes and keep it alive until Ctrl-C.

    Prints one line `ready http=HOST:PORT grpc=HOST:PORT` when every service is serving. SIGHUP starts all
    processes anew, one after the other, without a request that fails. With --router no router is started: the
    model is one more of the router that is named.

    Example: `tidepipe up --model smollm2-135m --stages 2 --http-port 8080 --grpc-port 7070`
    """
    if context.args:
        raise ConfigError(f"unexpected argument {context.args[0]!r}; a model is named with --model")
    run(_serve(cluster, trace), interrupted=SUCCESS)


async def _serve(settings: dict[str, Any], trace: Path | None) -> int:
    require(SERVER, "`tidepipe up`")
    # Late, so that `tidepipe --help` stays quick.
    from launcher.renewal import Renewal
    from tidepipe.cli.local_cluster import start_cluster
    from tidepipe_common.descriptors import limit, shares, too_few
    from tidepipe_common.regular_files import check_writable

    check_writable(trace)
    async with start_cluster(settings) as cluster:
        if cluster.tls_folder is not None:
            print(f"certificates for clients: {cluster.tls_folder}", file=sys.stderr, flush=True)
        if warning := too_few(cluster.config.max_connections or shares(limit()).http):
            print(f"note: {warning}", file=sys.stderr, flush=True)
        config = cluster.config
        if config.router is None:
            print(f"ready http={cluster.http_address} grpc={cluster.grpc_address}", flush=True)
        else:
            print(f"ready grpc={config.router} model={config.served_names[0]}", flush=True)
        renewal = Renewal(cluster)
        renewal.ready = True
        try:
            await cluster.wait()
        finally:
            renewal.end()
            if trace is not None:
                await _save(cluster, trace)
    return SUCCESS


async def _save(cluster: LocalCluster, trace: Path) -> None:
    """A trace that cannot be had must not hide why the cluster ended."""
    from tidepipe.client.async_client import AsyncClient
    from tidepipe_common.errors import TidePipeError

    try:
        async with AsyncClient(cluster.grpc_address, credentials=cluster.credentials) as client:
            await save_trace(client, trace)
    except TidePipeError as error:
        print(f"no trace: {error}", file=sys.stderr)
