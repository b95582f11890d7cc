"""What a command talks to: a running router, or a local cluster of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from common.logs import configure_logging
from tidepipe.cluster.child import ClusterError
from tidepipe.cluster.config import ClusterConfig, load_config
from tidepipe.cluster.local import LocalCluster


@dataclass(frozen=True, slots=True)
class Target:
    """endpoint: the router's HOST:PORT. cluster: set if it is our own."""

    endpoint: str
    cluster: LocalCluster | None

    async def failure(self) -> None:
        """Never returns while the target is well; ClusterError when our own cluster is not."""
        if self.cluster is not None:
            await self.cluster.wait()
        await asyncio.Event().wait()


@asynccontextmanager
async def start_cluster(settings: Mapping[str, Any]) -> AsyncIterator[LocalCluster]:
    """A serving cluster with these flags (and the file that they name)."""
    cluster = LocalCluster(_load(settings))
    configure_logging("supervisor", cluster.config.log_level)
    try:
        async with cluster:
            yield cluster
    except ClusterError:
        if cluster.log_dir is not None and cluster.log_dir.is_dir():
            print(f"logs of all processes: {cluster.log_dir}", file=sys.stderr)
        raise


@asynccontextmanager
async def open_target(endpoint: str | None, settings: Mapping[str, Any]) -> AsyncIterator[Target]:
    """The router at `endpoint`, or a local cluster. ConfigError unless one of the two is asked for."""
    if endpoint is not None:
        if settings:
            flag = next(iter(settings)).replace("_", "-")
            raise ConfigError(
                f"--{flag} describes a cluster to start, --endpoint a running one; give one of them"
            )
        yield Target(endpoint, None)
        return
    if not settings:
        raise ConfigError("give --model to start a local cluster, or --endpoint of a running one")
    async with start_cluster(settings) as cluster:
        yield Target(cluster.grpc_address, cluster)


def _load(settings: Mapping[str, Any]) -> ClusterConfig:
    flags = dict(settings)
    return load_config(flags.pop("config", None), flags)
