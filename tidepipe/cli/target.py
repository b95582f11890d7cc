"""What a command talks to: a running router, or a local cluster of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tidepipe_common.errors import ConfigError
from tidepipe_common.extras import SERVER, require
from tidepipe_common.model_source import resolve_tokenizer
from tidepipe_common.security.credentials import Credentials

if TYPE_CHECKING:
    from launcher.local import LocalCluster

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Target:
    """endpoint: the router's HOST:PORT. cluster: set if it is our own. model_sources: names of its model."""

    endpoint: str
    cluster: LocalCluster | None
    model_sources: tuple[str, ...] = ()

    @property
    def credentials(self) -> Credentials | None:
        """How to reach it; None: as the environment says."""
        return None if self.cluster is None else self.cluster.credentials

    async def failure(self) -> None:
        """Never returns while the target is well; ClusterError when our own cluster is not."""
        if self.cluster is not None:
            await self.cluster.wait()
        await asyncio.Event().wait()


@asynccontextmanager
async def open_target(
    endpoint: str | None, settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> AsyncIterator[Target]:
    """The router at `endpoint`, or a local cluster. ConfigError unless one of the two is asked for.

    defaults: what the command knows best about the cluster, unless flags or their file say otherwise.
    """
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
    if "router" in settings:
        raise ConfigError("--router is for `tidepipe up`, which brings a model there; use one by --endpoint")
    require(SERVER, "a local cluster")
    from tidepipe.cli.local_cluster import start_cluster  # late: clients of a running router lack it

    async with start_cluster(settings, defaults) as cluster:
        model = cluster.config.model
        yield Target(cluster.grpc_address, cluster, (model, str(resolve_tokenizer(model))))


async def run_on(target: Target, job: Coroutine[Any, Any, Result]) -> Result:
    """Run `job` to its end, but not longer than the target can be kept alive."""
    running = asyncio.ensure_future(job)
    watching = asyncio.ensure_future(target.failure())
    try:
        await asyncio.wait((running, watching), return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not running.done():
            watching.result()
        return await running
    finally:
        for task in (running, watching):
            task.cancel()
        await asyncio.gather(running, watching, return_exceptions=True)
