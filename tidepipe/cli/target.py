"""What a command talks to: a running router, or a local cluster of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from launcher.child import ClusterError
from launcher.config import ClusterConfig, load_config
from launcher.local import LocalCluster
from tidepipe.cli.waiting import Waiting
from tidepipe_common.errors import ConfigError
from tidepipe_common.model_source import resolve_model
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.telemetry.logs import configure_logging

Result = TypeVar("Result")
LOOK_S = 0.5
_NAMES = 2
_OPEN_TO_ALL = (
    "note: without --tls DIR the processes on Ray's nodes take calls from whoever reaches their ports, "
    "who sees prompts and answers"
)


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
async def start_cluster(
    settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> AsyncIterator[LocalCluster]:
    """A serving cluster with these flags (and the file that they name).

    defaults: for what they leave open.
    """
    cluster = LocalCluster(_load(settings, defaults))
    configure_logging("supervisor", cluster.config.log_level)
    await cluster.prepare()
    if cluster.open_to_all:
        print(_OPEN_TO_ALL, file=sys.stderr, flush=True)
    shape = f"{cluster.config.instances} x {cluster.config.stages} stages"
    print(f"starting a local cluster: {shape} of {cluster.config.model}", file=sys.stderr, flush=True)
    try:
        async with _watched(cluster):
            for reason in cluster.slow_because:
                print(f"several times slower than it could be: {reason}", file=sys.stderr, flush=True)
            yield cluster
    except ClusterError:
        if cluster.log_dir is not None and cluster.log_dir.is_dir():
            print(f"logs of all processes: {cluster.log_dir}", file=sys.stderr)
        raise


@asynccontextmanager
async def _watched(cluster: LocalCluster) -> AsyncIterator[None]:
    """Inside, the cluster serves; on the way there its processes are counted on stderr."""
    async with AsyncExitStack() as stack:
        with Waiting("starting processes") as waiting:
            looking = asyncio.create_task(_say_who_lacks(cluster, waiting), name="watch the start")
            try:
                await stack.enter_async_context(cluster)
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
        yield


async def _say_who_lacks(cluster: LocalCluster, waiting: Waiting) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        children = cluster.children
        lacking = [child.name for child in children if not child.ready]
        names = ", ".join(lacking[:_NAMES]) + (", ..." if len(lacking) > _NAMES else "")
        what = f"waiting for {names}" if lacking else "waiting for the router to reach every instance"
        waiting.say(f"{len(children) - len(lacking)} of {len(children)} processes ready, {what}")


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
    async with start_cluster(settings, defaults) as cluster:
        model = cluster.config.model
        yield Target(cluster.grpc_address, cluster, (model, str(resolve_model(model))))


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


def _load(settings: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> ClusterConfig:
    flags = dict(settings)
    return load_config(flags.pop("config", None), flags, defaults)
