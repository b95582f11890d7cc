"""The wall clock of all processes jumps, days ahead and back, in the midst of work: nothing happens.

Leases, deadlines, latency targets and rate limits go by steady clocks. Only what must outlive a restart goes
by the wall: the windows of batches, the expiry of keys and certificates.
"""

from __future__ import annotations

import asyncio
import struct
import subprocess
from pathlib import Path

import httpx
import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.types.sampling import SamplingParams

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

DAY_S = 86_400.0
JUMPS_S = (DAY_S, -DAY_S, 400 * DAY_S, 0.0)
REQUESTS, TOKENS = 8, 80


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file; how many seconds it says, so far ahead are the clocks of processes started from now on."""
    library = tmp_path / "clock_jump.so"
    source = Path(__file__).with_name("clock_jump.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60)
    file = tmp_path / "ahead"
    jump(file, 0.0)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_JUMP_FILE", str(file))
    return file


def jump(file: Path, ahead_s: float) -> None:
    """In one write, for it is mapped."""
    with file.open("r+b" if file.exists() else "wb") as opened:
        opened.write(struct.pack("d", ahead_s))


async def answers(client: AsyncClient, file: Path, jumps: tuple[float, ...]) -> list[tuple[int, ...]]:
    """All requests at once; a jump each time that another share of the tokens has come."""
    left = list(jumps)
    seen = 0

    async def one(number: int) -> tuple[int, ...]:
        nonlocal seen
        tokens: list[int] = []
        sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
        async with client.stream([5, 6, 7 + number], sampling, timeout=60) as stream:
            async for event in stream:
                tokens += event.token_ids
                seen += len(event.token_ids)
                if left and seen > REQUESTS * TOKENS * (len(jumps) - len(left) + 1) / (len(jumps) + 1):
                    jump(file, left.pop(0))
        return tuple(tokens)

    result = await asyncio.gather(*(one(number) for number in range(REQUESTS)))
    assert not left, "the batch was over before the last jump"
    return list(result)


async def created(http: str) -> float:
    """Wall clock of the router, as it dates an answer."""
    body = {"prompt": "hi", "max_tokens": 1}
    async with httpx.AsyncClient(base_url=f"http://{http}", timeout=30, trust_env=False) as client:
        answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return float(answer.json()["created"])


async def test_the_clock_may_jump(model_path: Path, clock: Path) -> None:
    config = ClusterConfig(model=str(model_path), stages=2, executor="emulated", hardware="L20")
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        before = await created(cluster.http_address)
        undisturbed = await answers(client, clock, ())
        assert await answers(client, clock, JUMPS_S) == undisturbed
        jump(clock, 2 * DAY_S)
        assert await created(cluster.http_address) > before + DAY_S, "the clock did not jump"
        # Longer than leases and heartbeats: whoever went by the wall would be thought dead.
        await asyncio.sleep(6)
        jump(clock, -2 * DAY_S)
        await asyncio.sleep(6)
        assert await answers(client, clock, ()) == undisturbed
        assert not [child.name for child in cluster.children if child.restart_count]
