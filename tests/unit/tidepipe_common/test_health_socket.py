"""The health check of containers: a real process asks a real socket."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tidepipe_common.rpc import health_socket
from tidepipe_common.rpc.server import RpcServer


async def asked(path: Path) -> int | None:
    # -S, as in deploy/compose.yaml: it must not need what is installed.
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-P", "-m", "tidepipe_common.rpc.probe", f"unix:{path}",
        env={"PYTHONPATH": str(Path(__file__).parents[3])}, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await probe.wait()


async def test_it_tells_whether_the_service_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "health.sock"
    path.touch()  # a process that was killed has left something there
    monkeypatch.setenv(health_socket.HEALTH_SOCKET, str(path))
    rpc = RpcServer("127.0.0.1:0")
    await rpc.start([])
    assert await asked(path) == 1
    await rpc.set_serving(True)
    assert await asked(path) == 0
    await rpc.stop(0)
    assert await asked(path) == 1
