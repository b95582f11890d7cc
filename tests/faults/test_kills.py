"""kill -9 of any process in the middle of a batch: every request completes, greedy output unchanged."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tests.fakes.thinking_model import thinking_model
from tests.tiny_models import make_tiny_model
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.async_stream import AsyncStream
from tidepipe.client.types import BatchItem
from tidepipe_common.dialects import Gathering, Spoken
from tidepipe_common.types.sampling import SamplingParams

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

REQUESTS = 8
ASK = ({"role": "user", "content": "What is the weather in Paris?"},)
NAMES = [f"argument_{number}" for number in range(3)]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string", "minLength": 4, "maxLength": 12} for name in NAMES},
    "required": NAMES,
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CHATS: tuple[dict[str, Any], ...] = (
    {"tools": [TOOL], "tool_choice": "required", "max_reasoning_tokens": 20, "max_tokens": 300},
    {
        "chat_template_kwargs": {"enable_thinking": True},
        "max_reasoning_tokens": 40,
        "max_tokens": 60,
        "min_tokens": 60,
    },
)
"""A forced call, and a thought that a budget ends."""


def items() -> list[BatchItem]:
    """Random prompts of mixed lengths, greedy answers of mixed lengths."""
    chance = np.random.default_rng(5)
    return [
        BatchItem(
            chance.integers(100, 49_000, size=int(chance.integers(5, 120))).tolist(),
            SamplingParams(temperature=0, max_tokens=int(chance.integers(60, 180)), ignore_eos=True),
        )
        for _ in range(REQUESTS)
    ]


def quick_model(source: Path, folder: Path) -> Path:
    """A thinking model of few random weights: tried is what comes back, not how long computing takes."""
    model = thinking_model(source, folder)
    tiny = make_tiny_model(
        "llama", folder.with_name("tiny"), vocab_size=49_152, seed=1, max_position_embeddings=2048
    )
    for file in tiny.iterdir():
        file.replace(model / file.name)
    return model


async def run_batch(
    cluster: LocalCluster, victims: tuple[str, ...], after_tokens: int
) -> list[tuple[tuple[int, ...], Spoken]]:
    """Answer all items and chats; once so many tokens have come, kill each victim, one after the other."""
    seen = 0
    enough = asyncio.Event()

    async def one(stream: AsyncStream) -> tuple[tuple[int, ...], Spoken]:
        nonlocal seen
        tokens: list[int] = []
        parts = Gathering()
        async with stream:
            async for event in stream:
                tokens.extend(event.token_ids)
                parts.add(event.parts)
                seen += len(event.token_ids)
                if seen >= after_tokens:
                    enough.set()
        return tuple(tokens), parts.spoken()

    async def kill() -> None:
        await enough.wait()
        for name in victims:
            child = next(child for child in cluster.children if child.name == name)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    async with AsyncClient(cluster.grpc_address) as client, asyncio.TaskGroup() as group:
        killer = group.create_task(kill())
        streams = [client.stream(item.prompt, item.sampling) for item in items()]
        streams += [client.stream(ASK, temperature=0, **options) for options in CHATS]
        answers = [group.create_task(one(stream)) for stream in streams]
        await asyncio.wait(answers)
        assert killer.done(), "the batch was over before the fault"
    return [answer.result() for answer in answers]


async def test_any_process_may_be_killed_mid_batch(model_path: Path, tmp_path: Path) -> None:
    """One cluster, one fault after the other (float32, so that recomputation is exact)."""
    model = quick_model(model_path, tmp_path / "model")
    config = ClusterConfig(model=str(model), stages=2, dtype="float32")
    async with LocalCluster(config) as cluster:
        undisturbed = await run_batch(cluster, (), after_tokens=1)
        *texts, (_, forced), (_, thought) = undisturbed
        lengths = [item.sampling.max_tokens for item in items() if item.sampling]
        assert [len(tokens) for tokens, _ in texts] == lengths
        (call,) = forced.calls
        jsonschema.validate(json.loads(call.arguments), PARAMETERS)
        assert thought.thought and thought.words
        for victims in (
            ("stage-worker-0-0",),
            ("stage-worker-0-1",),
            ("controller-0",),
            ("predictor",),
            ("router",),
            ("controller-0", "stage-worker-0-1"),
        ):
            disturbed = await run_batch(cluster, victims, after_tokens=100)
            assert disturbed == undisturbed, f"answers changed after killing {victims}"
        restarts = {child.name: child.restart_count for child in cluster.children}
    assert restarts == {
        "predictor": 1,
        "router": 1,
        "controller-0": 2,
        "stage-worker-0-0": 1,
        "stage-worker-0-1": 2,
    }
