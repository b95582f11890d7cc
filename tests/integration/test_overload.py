"""Ten times the load that a cluster bears: refused at once with a hint, and who was admitted is served."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

PROFILE = "tokens,ms\n1,20\n64,24\n1024,120\n"
PLACES, PENDING = 8, 8
"""8 sequences at 20 ms per token and 20 tokens each: about 20 requests per second."""


@pytest.fixture
async def cluster(model_path: Path, tmp_path: Path) -> AsyncIterator[LocalCluster]:
    profile = tmp_path / "profile.csv"
    profile.write_text(PROFILE)
    config = ClusterConfig(
        model=str(model_path),
        executor="emulated",
        profile=str(profile),
        max_sequences=PLACES,
        max_pending=PENDING,
    )
    async with LocalCluster(config) as one:
        yield one


def bench(workload: Path, *flags: str) -> dict[str, Any]:
    """The report of `tidepipe bench serve`, which must find no failure beside refusals."""
    command = [sys.executable, "-m", "tidepipe.cli.main", "bench", "serve", "--workload", str(workload)]
    done = subprocess.run(
        [*command, *flags, "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report: dict[str, Any] = json.loads(done.stdout)
    return report


async def test_ten_times_the_sustainable_load(cluster: LocalCluster, tmp_path: Path) -> None:
    workload = tmp_path / "workload.json"
    workload.write_text(json.dumps([{"prompt": [7] * 20, "out": 20}] * 50))
    http = f"http://{cluster.http_address}"
    for door in (("--endpoint", cluster.grpc_address), ("--url", http)):
        report = await asyncio.to_thread(bench, workload, *door, "--rate", "200", "--requests", "300")
        (figures,) = report["runs"]
        assert figures["rejected"] > 100 and figures["completed"] > PLACES
        assert figures["completed"] + figures["rejected"] == 300
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        body = {"prompt": [7] * 20, "max_tokens": 20, "ignore_eos": True}
        calls = [client.post(f"{http}/v1/completions", json=body) for _ in range(4 * (PLACES + PENDING))]
        answers = await asyncio.gather(*calls)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused and all(answer.status_code == 429 for answer in refused)
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1 and int(answer.headers["retry-after-ms"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
    assert all(a.json()["usage"]["completion_tokens"] == 20 for a in answers if a.status_code == 200)
    await blocks_are_free(cluster)


async def blocks_are_free(cluster: LocalCluster) -> None:
    """Nothing of all this is left behind."""
    async with AsyncClient(cluster.grpc_address) as client:
        for _ in range(100):
            status = (await client.status()).instances[0].status
            if status is not None and status.kv_blocks_free == status.kv_blocks_total:
                return
            await asyncio.sleep(0.05)
    raise AssertionError("there are KV blocks in use, but no requests")
