"""`--upstream`: a real router before servers of somebody else's making, one of which fails."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tests.fakes.openai_server import FakeOpenAi, serving
from tidepipe.client.async_client import AsyncClient

pytestmark = [pytest.mark.model, pytest.mark.timeout(120)]
ANSWER = " The tide turns twice a day, as the moon and the sun pull at the sea."


async def test_answers_go_on_where_a_server_broke_off(model_path: Path, tmp_path: Path) -> None:
    model = tmp_path / "no-weights"
    model.mkdir()
    for file in sorted(model_path.glob("*.json")):  # noqa: ASYNC240
        (model / file.name).write_bytes(file.read_bytes())
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    async with contextlib.AsyncExitStack() as stack:
        fakes = [
            await stack.enter_async_context(serving(FakeOpenAi(tokenizer, ANSWER, pause_s=0.01)))
            for _ in range(2)
        ]
        config = ClusterConfig(
            model=str(model),
            upstream=",".join(fake.url for fake in fakes),
            run_dir=str(tmp_path / "run"),
            routing="round-robin",
        )
        cluster = await stack.enter_async_context(LocalCluster(config))
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{cluster.http_address}", timeout=60, trust_env=False)
        )

        async def ask(**more: Any) -> httpx.Response:
            return await http.post("/v1/completions", json={"prompt": [1, 2, 3], "max_tokens": 200, **more})

        answers = await asyncio.gather(*(ask() for _ in range(4)))
        assert [answer.json()["choices"][0]["text"] for answer in answers] == 4 * [ANSWER]
        assert all(fake.bodies for fake in fakes), "both have their share"

        fakes[0].die_after = 5
        answers = await asyncio.gather(*(ask() for _ in range(4)))
        assert [answer.json()["choices"][0]["text"] for answer in answers] == 4 * [ANSWER]
        assert any(len(body["prompt"]) > 3 for body in fakes[1].bodies), "it went on from there"

        too_long = await ask(max_tokens=1000)
        assert too_long.status_code == 400, "the server's context counts"
        async with AsyncClient(cluster.grpc_address, credentials=cluster.credentials) as client:
            status = await client.status()
        told = [one.status for one in status.instances]
        assert all(one and "schedules by itself" in one.detail for one in told)
