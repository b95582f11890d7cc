"""A small cluster with `tidepipe up --tls auto`, found from outside: every port that it listens on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher.scrape_targets import FILE_NAME

READY_S = 120.0
STOP_S = 60.0
GRPC, HTTP, METRICS = "gRPC", "HTTP", "metrics"


@dataclass(frozen=True, slots=True)
class Port:
    """process: `router`, `controller`, `stage_worker`, `predictor`, or `supervisor`. kind: what it speaks."""

    process: str
    kind: str
    address: str


@dataclass(frozen=True, slots=True)
class SecuredCluster:
    """folder: of logs, and of the certificates in `tls`. ports: all on which any of its processes listens."""

    folder: Path
    http: str
    grpc: str
    ports: tuple[Port, ...]

    @property
    def tls(self) -> Path:
        """Certificates, keys and the cluster token, as `tidepipe certs make` makes them."""
        return self.folder / "tls"


@contextlib.asynccontextmanager
async def secured_cluster(model: str, folder: Path, *options: str) -> AsyncIterator[SecuredCluster]:
    """Emulated, with metrics and debug logs; ended in order. RuntimeError if it does not come up."""
    command = [sys.executable, "-m", "tidepipe.cli.main", "up", "--model", model, "--executor", "emulated"]
    command += ["--tls", "auto", "--metrics", "--log-level", "debug", "--run-dir", str(folder), *options]
    supervisor = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        http, grpc = await _ready(supervisor)
        yield SecuredCluster(folder, http, grpc, _ports(supervisor.pid, http, folder))
    finally:
        if supervisor.returncode is None:
            supervisor.terminate()
        async with asyncio.timeout(STOP_S):
            await supervisor.communicate()


async def _ready(supervisor: Process) -> tuple[str, str]:
    assert supervisor.stdout is not None
    assert supervisor.stderr is not None
    async with asyncio.timeout(READY_S):
        line = (await supervisor.stdout.readline()).decode()
        found = re.fullmatch(r"ready http=(\S+) grpc=(\S+)\n", line)
        if found is None:
            raise RuntimeError(f"no cluster: {(await supervisor.stderr.read()).decode()}")
    return found[1], found[2]


def _ports(supervisor: int, http: str, folder: Path) -> tuple[Port, ...]:
    targets = json.loads((folder / FILE_NAME).read_text())
    scraped = {address for entry in targets for address in entry["targets"]}
    found = []
    root = psutil.Process(supervisor)
    for process in (root, *root.children(recursive=True)):
        line = process.cmdline()
        name = "supervisor" if process == root else line[line.index("-m") + 1]
        for socket in process.net_connections("tcp"):
            if socket.status == psutil.CONN_LISTEN:
                # gRPC's sockets take IPv6, too, and so name IPv4's loopback in IPv6's words.
                address = f"{socket.laddr.ip.removeprefix('::ffff:')}:{socket.laddr.port}"
                kind = HTTP if address == http else METRICS if address in scraped else GRPC
                found.append(Port(name, kind, address))
    return tuple(sorted(found, key=lambda port: (port.kind, port.process)))
