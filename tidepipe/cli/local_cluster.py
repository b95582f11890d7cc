"""A local cluster of a command's own, whose start is shown."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from launcher.child import ClusterError
from launcher.config import ClusterConfig, load_config
from launcher.local import LocalCluster
from tidepipe.cli.waiting import Waiting
from tidepipe_common.telemetry.logs import configure_logging

LOOK_S = 0.5
_NAMES = 2
_OPEN_TO_ALL = (
    "note: without --tls DIR the processes on Ray's nodes take calls from whoever reaches their ports, "
    "who sees prompts and answers"
)


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
    config = cluster.config
    shape = (
        f"{len(config.upstreams)} upstream servers"
        if config.upstreams
        else f"{config.instances} x {config.stages} stages"
    )
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


def _load(settings: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> ClusterConfig:
    flags = dict(settings)
    return load_config(flags.pop("config", None), flags, defaults)
