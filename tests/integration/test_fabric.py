"""Activations by fabric: the same answers as by RPC, also when a stage is killed under way."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.types import BatchItem
from tidepipe_common.types.sampling import SamplingParams

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

KILL_AFTER_TOKENS = 40


def items() -> list[BatchItem]:
    """Random prompts, one longer than a prefill step."""
    chance = np.random.default_rng(7)
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    return [BatchItem(chance.integers(100, 49_000, size=size).tolist(), greedy) for size in (1, 40, 300, 90)]


async def answers(cluster: LocalCluster, victim: str | None = None) -> list[tuple[int, ...]]:
    """All items at once; the victim is killed once some tokens have come."""
    seen = 0

    async def one(client: AsyncClient, item: BatchItem) -> tuple[int, ...]:
        nonlocal seen, victim
        tokens: list[int] = []
        async with client.stream(item.prompt, item.sampling) as stream:
            async for event in stream:
                tokens.extend(event.token_ids)
                seen += len(event.token_ids)
                if victim and seen >= KILL_AFTER_TOKENS:
                    child = next(child for child in cluster.children if child.name == victim)
                    assert child.pid is not None
                    os.kill(child.pid, signal.SIGKILL)
                    victim = None
        return tuple(tokens)

    async with AsyncClient(cluster.grpc_address) as client:
        result = await asyncio.gather(*(one(client, item) for item in items()))
    assert victim is None, "the batch was over before the fault"
    return result


def lines_with(logs: Path, text: str) -> int:
    """Lines of the controller's logs that say so."""
    return sum(text in line for log in logs.glob("*controller*") for line in log.read_text().splitlines())


async def test_fabric_changes_no_answer(model_path: Path, tmp_path: Path) -> None:
    by_rpc = ClusterConfig(model=str(model_path), stages=3, dtype="float32", kv_blocks=64)
    async with LocalCluster(by_rpc) as cluster:
        expected = await answers(cluster)
    by_fabric = by_rpc.model_copy(update={"fabric": "gloo", "run_dir": str(tmp_path)})
    async with LocalCluster(by_fabric) as cluster:
        assert await answers(cluster) == expected
        assert await answers(cluster, "stage-worker-0-1") == expected
    assert lines_with(tmp_path, '"by_fabric": 2') == 2, "both epochs, both ways"
