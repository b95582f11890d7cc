"""The router may go: killed, with clients that ask again by key; or restarted, with clients that never do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.child import Child
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.types.sampling import SamplingParams

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

TOKENS = 60
ASKED_AGAIN_S = 60.0
BODY = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}


@pytest.fixture
async def cluster(model_path: Path, tmp_path: Path) -> AsyncIterator[LocalCluster]:
    profile = tmp_path / "profile.csv"
    profile.write_text("tokens,ms\n1,15\n4096,30\n")
    config = ClusterConfig(model=str(model_path), executor="emulated", profile=str(profile), instances=2)
    async with LocalCluster(config) as one:
        yield one


def http_client(cluster: LocalCluster) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    transport = httpx.AsyncHTTPTransport(retries=0, limits=limits)
    url = f"http://{cluster.http_address}"
    return httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, transport=transport)


async def ask(http: httpx.AsyncClient, number: int, *, stream: bool, key: str | None = None) -> str:
    """The text of an answer; AssertionError, or httpx.HTTPError, if it is not the whole one."""
    headers = {} if key is None else {"idempotency-key": key}
    body = {**BODY, "prompt": f"number {number % 8}", "stream": stream}
    if not stream:
        answer = await http.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        assert choice["finish_reason"] == "length"
        return str(choice["text"])
    text, last = "", ""
    async with http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                text += chunk["choices"][0]["text"]
            last = line or last
    assert last == "data: [DONE]"
    return text


def router_of(cluster: LocalCluster) -> Child:
    return next(child for child in cluster.children if child.name == "router")


async def test_the_router_may_go(cluster: LocalCluster) -> None:
    """One cluster for both: starting one takes longer."""
    await nothing_with_a_key_is_lost_when_the_router_is_killed(cluster)
    await a_rolling_restart_costs_nobody_anything(cluster)


async def nothing_with_a_key_is_lost_when_the_router_is_killed(cluster: LocalCluster) -> None:
    """64 requests, streamed and whole; asked again with their keys until they are answered."""
    async with http_client(cluster) as http:
        right = [await ask(http, number, stream=False) for number in range(8)]

        async def persistent(number: int) -> tuple[str, int]:
            key, tries = uuid.uuid4().hex, 0
            async with asyncio.timeout(ASKED_AGAIN_S):
                while True:
                    tries += 1
                    try:
                        return await ask(http, number, stream=number % 2 == 0, key=key), tries
                    except (httpx.HTTPError, AssertionError):
                        await asyncio.sleep(0.2)

        asking = [asyncio.create_task(persistent(number)) for number in range(64)]
        await asyncio.sleep(0.8)
        pid = router_of(cluster).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*asking)
    assert [text for text, _ in answers] == [right[number % 8] for number in range(64)]
    assert sum(tries > 1 for _, tries in answers) > 30, "the kill came too late"


async def a_rolling_restart_costs_nobody_anything(cluster: LocalCluster) -> None:
    """Constant load by clients that do not ask again, while every process is started anew."""
    asked: dict[str, int] = {"sdk": 0, "http": 0, "sse": 0}
    failed: list[str] = []
    over = asyncio.Event()
    running: set[asyncio.Task[None]] = set()
    before = {child.name: child.pid for child in cluster.children}

    async def one(kind: str, number: int, right: list[str]) -> None:
        asked[kind] += 1
        try:
            if kind == "sdk":
                sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
                text = (await sdk.generate(f"number {number % 8}", sampling)).text
            elif kind == "http" and number % 2:
                text = await ask(http, number, stream=False)
            else:
                async with http_client(cluster) as fresh:
                    text = await ask(fresh, number, stream=kind == "sse")
            assert text == right[number % 8]
        except Exception as error:
            failed.append(f"{kind} {number}: {type(error).__name__}: {error}")

    async def load(right: list[str]) -> None:
        number = 0
        while not over.is_set():
            for kind in asked:
                task = asyncio.create_task(one(kind, number, right))
                running.add(task)
                task.add_done_callback(running.discard)
            number += 1
            await asyncio.sleep(0.2)

    async with http_client(cluster) as http, AsyncClient(cluster.grpc_address) as sdk:
        right = [await ask(http, number, stream=False) for number in range(8)]
        loading = asyncio.create_task(load(right))
        await asyncio.sleep(0.5)
        await cluster.renew()
        await asyncio.sleep(0.5)
        over.set()
        await loading
        await asyncio.gather(*running)
    assert not failed, failed[:10]
    assert min(asked.values()) > 10
    assert all(child.pid != before[child.name] for child in cluster.children)
    old = before["router"]
    assert old is not None
    await until(lambda: not alive(old))


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def until(check: Callable[[], bool]) -> None:
    """The old router ends as soon as nothing is in flight."""
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110 (another process's state)
            await asyncio.sleep(0.05)
