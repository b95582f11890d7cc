"""Real processes, and requests that carry far too much: refused by their own fault, neighbours unchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import inference_pb2_grpc as pb_grpc
from tidepipe.v1 import sampling_pb2
from tidepipe_common.rpc.channel import open_channel

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

CANARY = {"prompt": "Tides rise and fall because", "max_tokens": 120, "temperature": 0, "ignore_eos": True}
MANY = 1_000_000


@pytest.fixture
async def cluster(model_path: Path, tmp_path: Path) -> AsyncIterator[LocalCluster]:
    config = ClusterConfig(model=str(model_path), stages=2, data_dir=str(tmp_path / "data"))
    async with LocalCluster(config) as one:
        yield one


async def hostile_http(http: str) -> list[dict[str, Any]]:
    """Each at its own door, several times; the errors that they get."""
    ids = {"prompt": "x", "n": 3, "stop_token_ids": [7] * MANY}
    bias = {"prompt": "x", "n": 16, "logit_bias": {str(token): 1 for token in range(49_000)}}
    turns = {"messages": [{"role": "user", "content": ""}] * 20_000}
    async with httpx.AsyncClient(trust_env=False, timeout=120) as client:
        calls = [client.post(f"{http}/v1/completions", json=body) for body in [*[ids] * 3, *[bias] * 4]]
        calls.append(client.post(f"{http}/v1/chat/completions", json=turns))
        answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [400] * len(answers)
    return [answer.json()["error"] for answer in answers]


async def hostile_grpc(address: str) -> list[str]:
    """What protobuf can say and JSON cannot."""
    role = pb.Chat(messages=[pb.ChatMessage(role="r" * 8_000_000, content="x")])
    ids = sampling_pb2.SamplingParams(n=3, stop_token_ids=[7] * 4_000_000)
    requests = [
        pb.InferenceRequest(request_id="role", chat=role),
        pb.InferenceRequest(request_id="ids", text="x", sampling=ids),
        pb.InferenceRequest(request_id="model", text="x", model="m" * 5_000_000),
    ]
    texts = []
    async with open_channel(address) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        for request in requests:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.Submit(pb.SubmitRequest(request=request), timeout=60)
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            texts.append(refusal.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Cancel(pb.CancelRequest(request_ids=["a"] * 1_000_000), timeout=60)
        texts.append(refusal.value.details() or "")
    return texts


async def canary(http: str, hostile: asyncio.Event) -> str:
    """A neighbour's stream; it says when it has begun."""
    pieces = []
    async with (
        httpx.AsyncClient(trust_env=False, timeout=120) as client,
        client.stream("POST", f"{http}/v1/completions", json={**CANARY, "stream": True}) as stream,
    ):
        async for line in stream.aiter_lines():
            if line.startswith("data: {"):
                pieces.append(json.loads(line[6:])["choices"][0]["text"])
                hostile.set()
    return "".join(pieces)


async def batch_goes_on(http: str) -> None:
    """A batch of one hostile and one innocent line ends, with one error."""
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": "x", "max_tokens": 2, **extra},
        }
        for name, extra in (("hostile", {"n": 3, "stop_token_ids": [7] * MANY}), ("innocent", {}))
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        upload = await client.post(
            f"{http}/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}
        )
        body = {
            "input_file_id": upload.json()["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        batch = (await client.post(f"{http}/v1/batches", json=body)).json()
        while batch["status"] in ("validating", "in_progress", "finalizing"):
            await asyncio.sleep(0.2)
            batch = (await client.get(f"{http}/v1/batches/{batch['id']}")).json()
        assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        errors = await client.get(f"{http}/v1/files/{batch['error_file_id']}/content")
    (line,) = errors.text.splitlines()
    assert json.loads(line)["custom_id"] == "hostile" and "stop_token_ids" in line


def memory(cluster: LocalCluster) -> dict[str, int]:
    return {
        child.name: psutil.Process(child.pid).memory_info().rss for child in cluster.children if child.pid
    }


async def test_too_much_is_refused_and_neighbours_go_on_unchanged(cluster: LocalCluster) -> None:
    http = f"http://{cluster.http_address}"
    alone = await canary(http, asyncio.Event())
    before = memory(cluster)
    begun = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        canaries = [group.create_task(canary(http, begun)) for _ in range(4)]
        await begun.wait()
        errors = await hostile_http(http)
        texts = await hostile_grpc(cluster.grpc_address)
    assert {error["param"] for error in errors} == {"stop_token_ids", "logit_bias", "messages"}
    assert all("may have" in text for text in [*texts, *(error["message"] for error in errors)])
    assert [task.result() for task in canaries] == [alone] * 4
    await batch_goes_on(http)
    assert {child.name: child.restart_count for child in cluster.children} == dict.fromkeys(before, 0)
    for name, rss in memory(cluster).items():
        limit = 500 if name == "router" else 150  # bodies are read where they come in, and nowhere else
        assert rss - before[name] < limit << 20, name
