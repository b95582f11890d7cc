"""`tidepipe batch` against an endpoint, interrupted at random moments and run again: as if nothing had been.

INTERRUPTIONS in the environment says at how many moments for each kind (1), INTERRUPTION_SEED where from.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster

MOMENTS = int(os.environ.get("INTERRUPTIONS", "1"))
SEED = int(os.environ.get("INTERRUPTION_SEED", str(random.SystemRandom().randrange(10**6))))
LINES, TOKENS = 24, 40
LASTS_S = 1.3
"""About as long as the answers take: two rounds of twelve, 40 steps of 15 ms each."""
KINDS = ("SIGINT", "SIGTERM", "SIGKILL", "cut link")

pytestmark = [pytest.mark.model, pytest.mark.timeout(120 + 60 * MOMENTS)]


class Link:
    """A connection's way to the router, which can be cut: what goes over it ends, and nothing new comes."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut = False
        self.address = ""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Link]:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self
            self.cut()

    def cut(self) -> None:
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._cut = False

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        there_reader, there = await asyncio.open_connection(self._host, self._port)
        both = {writer, there}
        self._writers |= both
        try:
            await asyncio.gather(_pass_on(reader, there), _pass_on(there_reader, writer))
        finally:
            self._writers -= both
            for one in both:
                one.transport.abort()


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.transport.abort()


async def start(source: Path, target: Path, endpoint: str) -> asyncio.subprocess.Process:
    command = ["-m", "tidepipe.cli.main", "batch", str(source), "-o", str(target), "--concurrency", "12"]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *command, "--endpoint", endpoint), stderr=asyncio.subprocess.DEVNULL
    )


def answers(target: Path) -> list[dict[str, Any]]:
    """What the lines say, and away with the file; ids and times belong to a run."""
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    for line in lines:
        del line["id"], line["response"]["request_id"]
        del line["response"]["body"]["id"], line["response"]["body"]["created"]
    target.unlink()
    return lines


async def interrupted(
    kind: str, at_s: float, away_s: float, source: Path, target: Path, link: Link
) -> list[dict[str, Any]]:
    """The answers of a run to which something happened `at_s` after it began, and that was run again."""
    process = await start(source, target, link.address)
    progress = target.with_name(target.name + ".progress")
    await until(lambda: progress.exists() or process.returncode is not None)
    await asyncio.sleep(at_s)
    if kind == "cut link":
        link.cut()
        await asyncio.sleep(away_s)
        link.mend()
    elif process.returncode is None:
        process.send_signal(signal.Signals[kind])
    await process.wait()
    if process.returncode:
        process = await start(source, target, link.address)
        await process.wait()
    assert process.returncode == 0
    return answers(target)


async def until(check: Callable[[], bool]) -> None:
    while not check():  # noqa: ASYNC110 (another process's state)
        await asyncio.sleep(0.01)


async def test_an_interrupted_batch_gives_the_file_of_an_undisturbed_one(
    model_path: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "slow.csv"
    profile.write_text("tokens,ms\n1,15\n4096,30\n")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    line = {"method": "POST", "url": "/v1/completions"}
    bodies = [
        {"prompt": f"number {number}", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        for number in range(LINES)
    ]
    source.write_text(
        "".join(
            json.dumps({**line, "custom_id": f"c{n}", "body": body}) + "\n" for n, body in enumerate(bodies)
        )
    )
    chance = random.Random(SEED)
    print(f"INTERRUPTION_SEED={SEED} INTERRUPTIONS={MOMENTS}")
    config = ClusterConfig(model=str(model_path), executor="emulated", profile=str(profile))
    async with LocalCluster(config) as cluster, Link(cluster.grpc_address).opened() as link:
        assert await (await start(source, target, link.address)).wait() == 0
        undisturbed = answers(target)
        choices = [line["response"]["body"]["choices"][0] for line in undisturbed]
        assert len(choices) == LINES and {choice["finish_reason"] for choice in choices} == {"length"}

        async def tried(kind: str, own: Path, link: Link) -> None:
            at_s, away_s = chance.uniform(0, LASTS_S), chance.uniform(0.1, 2)
            print(f"{kind} after {at_s:.3f} s", flush=True)
            assert await interrupted(kind, at_s, away_s, source, own, link) == undisturbed, (kind, at_s)

        for _ in range(MOMENTS):
            # At once, each on a way of its own: most of the time is that of starting commands.
            async with contextlib.AsyncExitStack() as links, asyncio.TaskGroup() as group:
                for number, kind in enumerate(KINDS):
                    way = await links.enter_async_context(Link(cluster.grpc_address).opened())
                    group.create_task(tried(kind, tmp_path / f"out-{number}.jsonl", way))
        assert not any(child.restart_count for child in cluster.children)
