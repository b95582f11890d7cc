"""A service process on a node of a Ray cluster. Runs inside a Ray actor."""

from __future__ import annotations

import asyncio
import os
import socket

import ray

from launcher.child import Child, ChildSpec
from launcher.ports import join


class HostedProcess:
    """The actor: starts one process on its node, keeps it alive, and takes it along when it ends.

    Its process group dies with the actor's own process, however that ends.
    """

    def __init__(self, spec: ChildSpec) -> None:
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._child = Child(spec, join(host, 0), log_file=None)
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """HOST:PORT once the process serves; ClusterError if it does not."""
        address = await self._child.start()
        self._keeper = asyncio.create_task(self._child.keep_alive())
        return address

    async def stop(self, kill_after_s: float) -> None:
        """Let it end in order."""
        if self._keeper is not None:
            self._keeper.cancel()
        await self._child.stop(kill_after_s)

    async def place(self) -> str:
        """Where it is, for people."""
        node = ray.get_runtime_context().get_node_id()
        return f"{socket.gethostname()} node {node[:8]} pid {self._child.pid or os.getpid()}"
