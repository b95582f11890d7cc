"""Activations by fabric: Hugging Face's answers, also when a stage is killed under way."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tests.tiny_models import hugging_face_greedy, make_tiny_model, random_prompts
from tests.tiny_tokenizer import make_tokenizer
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.types.sampling import SamplingParams

pytestmark = pytest.mark.timeout(300)

TOKENS, KILL_AFTER_TOKENS = 60, 40
PROMPTS = random_prompts([1, 40, 300, 90], seed=7)
"""One is longer than a prefill step."""


async def answers(cluster: LocalCluster, victim: str | None = None) -> list[tuple[int, ...]]:
    """To all prompts at once; the victim is killed once some tokens have come."""
    seen = 0

    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)

    async def one(client: AsyncClient, prompt: tuple[int, ...]) -> tuple[int, ...]:
        nonlocal seen, victim
        tokens: list[int] = []
        async with client.stream(prompt, greedy) as stream:
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
        result = await asyncio.gather(*(one(client, prompt) for prompt in PROMPTS))
    assert victim is None, "the batch was over before the fault"
    return result


def lines_with(logs: Path, text: str) -> int:
    """Lines of the controller's logs that say so."""
    return sum(text in line for log in logs.glob("*controller*") for line in log.read_text().splitlines())


async def test_fabric_changes_no_answer(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path / "model")
    make_tokenizer(model)
    answered = await asyncio.to_thread(hugging_face_greedy, model, PROMPTS, TOKENS)
    expected = [tuple(tokens) for tokens in answered]
    config = ClusterConfig(
        model=str(model),
        stages=3,
        dtype="float32",
        kv_blocks=64,
        fabric="gloo",
        run_dir=str(tmp_path / "run"),
    )
    async with LocalCluster(config) as cluster:
        assert await answers(cluster) == expected
        assert await answers(cluster, "stage-worker-0-1") == expected
    assert lines_with(tmp_path / "run", '"by_fabric": 2') == 2, "both epochs, both ways"
