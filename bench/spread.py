"""A cluster whose processes run on different hosts: stages, brain and client apart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.hosts import Host, Hosts
from launcher.child import Child, ChildSpec
from launcher.config import ClusterConfig
from launcher.plan import controller_spec, predictor_spec, router_spec, worker_spec
from tidepipe_common.security.credentials import INSECURE

PORT = 7000
BATCH_S = 600.0


@dataclass(slots=True)
class SpreadCluster:
    """Running processes. endpoint: gRPC address of the router, on the first host."""

    endpoint: str
    brain: Host
    stages: Sequence[Host]
    children: list[Child] = field(default_factory=list)


@contextlib.asynccontextmanager
async def spread_cluster(
    hosts: Hosts, config: ClusterConfig, logs: Path, *, one_host: bool = False
) -> AsyncIterator[SpreadCluster]:
    """Router, predictor and controller on the first host, each stage on a host of its own behind it.

    An engine with workers of its own, and its controller, are on the second host instead.

    one_host: everything on the first host, to compare with. The processes are restarted when they die.
    """
    brain = hosts[0]
    native = config.engine == "native"
    stages = config.stages if native else 0
    stage_hosts = [brain if one_host else hosts[1 + stage] for stage in range(stages)]
    controllers_host = brain if native or one_host else hosts[1]
    cluster = SpreadCluster(f"{brain.address}:{PORT}", brain, stage_hosts)

    def child(host: Host, spec: ChildSpec, port: int) -> Child:
        made = Child(
            replace(spec, prefix=host.inside()),
            f"{host.address}:{port}",
            logs / f"{spec.name}.log",
            # The network of these hosts is closed.
            environment={**os.environ, INSECURE: "1"},
        )
        cluster.children.append(made)
        return made

    router = f"{brain.address}:{PORT}"
    predictor = f"{brain.address}:{PORT + 1}"
    workers = [
        child(host, worker_spec(config, 0, stage), PORT + 10 + stage)
        for stage, host in enumerate(stage_hosts)
    ]
    others = [
        child(brain, predictor_spec(config, logs / "predictor"), PORT + 1),
        child(
            brain,
            router_spec(
                config,
                http=f"{brain.address}:{PORT + 2}",
                predictor=predictor,
                provisioner="",
                run_dir=logs,
            ),
            PORT,
        ),
    ]
    keepers: list[asyncio.Task[None]] = []
    try:
        await asyncio.gather(*(one.start() for one in (*workers, *others)))
        controller = child(
            controllers_host,
            controller_spec(
                config, 0, stages=[one.address for one in workers], router=router, predictor=predictor
            ),
            PORT + 3,
        )
        await controller.start()
        keepers = [asyncio.create_task(one.keep_alive()) for one in cluster.children]
        yield cluster
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(one.stop() for one in cluster.children if one.relies_on_others))
        await asyncio.gather(*(one.stop(3.0) for one in cluster.children))


async def answer_batch(
    client: Host, endpoint: str, *flags: str, while_flowing: Callable[[], Awaitable[None]] | None = None
) -> dict[str, Any]:
    """What `bench.spread_load`, run on the client's host, prints at its end.

    flags: of that command. while_flowing: done once the first tokens have come. RuntimeError if none came.
    """
    load = await asyncio.create_subprocess_exec(
        *client.inside(sys.executable, "-m", "bench.spread_load", endpoint),
        *flags,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    assert load.stdout is not None
    try:
        async with asyncio.timeout(BATCH_S):
            if (await load.stdout.readline()).strip() != b"flowing":
                raise RuntimeError("no token came")
            if while_flowing is not None:
                await while_flowing()
            result: dict[str, Any] = json.loads(await load.stdout.readline())
            await load.wait()
            return result
    finally:
        if load.returncode is None:
            load.kill()
            await load.wait()
