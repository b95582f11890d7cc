"""A supervised process: readiness, restarts, giving up, and a sure end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from launcher.child import Child, ChildSpec, ClusterError
from tidepipe_common.errors import ConfigError

SERVICE = """
import json, os, signal, socket, sys, time

kind = sys.argv[3]
ready = os.fdopen(int(os.environ.pop("TIDEPIPE_READY_FD")), "w")
print("hello from", kind, flush=True)
if kind == "crash":
    sys.exit(7)
if kind == "refuse":
    print(json.dumps({"failed": "no such model"}), file=ready, flush=True)
    sys.exit(3)
if kind == "unusable":
    print(json.dumps({"failed": "config.json: what is this?", "settings": True}), file=ready, flush=True)
    sys.exit(2)
if kind == "hang":
    time.sleep(60)
if kind == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
host, port = sys.argv[2].split(":")
listener = socket.create_server((host, int(port)))
print(json.dumps({"ready": f"{host}:{listener.getsockname()[1]}"}), file=ready, flush=True)
ready.close()
time.sleep(0 if kind == "brief" else 60)
"""


@pytest.fixture
async def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Child]]:
    """One child of each kind; none is left behind."""
    (tmp_path / "scripted_service.py").write_text(SERVICE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made: list[Child] = []
    for kind in ("steady", "crash", "refuse", "unusable", "hang", "deaf", "brief"):
        spec = ChildSpec(kind, "scripted_service", [kind], ready_s=2 if kind == "hang" else 20)
        made.append(Child(spec, "127.0.0.1:0", tmp_path / f"{kind}.log"))
    yield made
    await asyncio.gather(*(child.stop(kill_after_s=0) for child in made))


def named(children: list[Child], name: str) -> Child:
    """The child of that kind."""
    return next(child for child in children if child.name == name)


async def test_who_is_taken_away_is_not_waited_for(children: list[Child]) -> None:
    """Rolling restarts go on when an instance is scaled in meanwhile."""
    child = named(children, "steady")
    await child.start()
    keeper = asyncio.create_task(child.keep_alive())
    await asyncio.sleep(0)
    renewing = asyncio.create_task(child.renew())
    await asyncio.sleep(0)
    keeper.cancel()
    async with asyncio.timeout(20):
        await renewing
        await child.renew()


async def test_who_is_being_restarted_anyway_is_renewed_by_that(
    children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.child.FIRST_RESTART_WAIT_S", 0.3)
    child = named(children, "steady")
    await child.start()
    first = child.pid
    assert first is not None
    keeper = asyncio.create_task(child.keep_alive())
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(20):
        while not child.restart_count:  # noqa: ASYNC110 (nobody sets an event for a test)
            await asyncio.sleep(0.01)
        await child.renew()
    assert child.pid not in (None, first)
    keeper.cancel()


async def test_a_killed_child_comes_back_at_the_same_address(children: list[Child]) -> None:
    child = named(children, "steady")
    address = await child.start()
    keeper = asyncio.create_task(child.keep_alive())
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(20):
        while (last := child.pid) in (None, first):  # noqa: ASYNC110 (nobody sets an event for a test)
            await asyncio.sleep(0.02)
        _, writer = await _connect(address)
    writer.close()
    assert child.restart_count == 1
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    await child.stop()
    assert last is not None
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


async def test_a_stopped_child_is_killed_and_started_anew(
    children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.child.STOPPED_S", 0.4)
    monkeypatch.setattr("launcher.child.STOPPED_LOOK_S", 0.1)
    child = named(children, "steady")
    await child.start()
    keeper = asyncio.create_task(child.keep_alive())
    first = child.pid
    assert first is not None
    await asyncio.sleep(0.6)
    assert child.pid == first
    os.kill(first, signal.SIGSTOP)
    async with asyncio.timeout(20):
        while child.pid in (None, first):  # noqa: ASYNC110 (nobody sets an event for a test)
            await asyncio.sleep(0.02)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.split(":")
    while True:
        try:
            return await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("refuse", ClusterError, "refuse could not start: no such model"),
        ("unusable", ConfigError, "unusable could not start: config.json: what is this?"),
        ("crash", ClusterError, "ended with code 7 before it was ready.*hello from crash"),
        ("hang", ClusterError, "was not ready after 2 s.*hello from hang"),
    ],
)
async def test_a_child_that_cannot_start_says_why(
    children: list[Child], kind: str, error: type[Exception], message: str
) -> None:
    child = named(children, kind)
    with pytest.raises(error, match=f"(?s){message}"):
        await child.start()
    assert child.pid is None


async def test_a_child_that_keeps_dying_is_given_up(
    children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.child.FIRST_RESTART_WAIT_S", 0.0)
    child = named(children, "brief")
    await child.start()
    with pytest.raises(ClusterError, match="brief ended 6 times within 60 s, last with code 0"):
        await child.keep_alive()


async def test_a_child_that_ignores_sigterm_is_killed(children: list[Child]) -> None:
    child = named(children, "deaf")
    await child.start()
    pid = child.pid
    await child.stop(kill_after_s=0.2)
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
