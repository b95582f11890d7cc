"""Evicted KV blocks come back from the second tier: the same answers, less to compute. Real processes."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import urllib.request
from pathlib import Path

import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tests.tiny_models import hugging_face_greedy, make_tiny_model, random_prompts
from tests.tiny_tokenizer import make_tokenizer
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.types.sampling import SamplingParams

pytestmark = pytest.mark.timeout(240)

TOKENS, TURNS = 6, 2
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
PROMPTS = random_prompts([200] * 6, seed=4)
ADDITIONS = random_prompts([40] * 6, seed=5)
"""What is said next in each conversation."""

Answers = list[list[tuple[int, ...]]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = make_tiny_model("llama", tmp_path / "model")
    make_tokenizer(folder)
    return folder


def scrape(run_dir: Path) -> dict[str, float]:
    """What the instance tells of its second tier, and how often its stages were lost."""
    figures: dict[str, float] = {}
    targets = json.loads((run_dir / "metrics-targets.json").read_text())
    for address in (address for group in targets for address in group["targets"]):
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        found = re.findall(r"^tidepipe_(recoveries|kv_offload_\w+?)(?:_total)?\{.*\} (\S+)$", text, re.M)
        figures.update({name: float(value) for name, value in found})
    return figures


def answers_of_hugging_face(model: Path) -> Answers:
    """To the same conversations, computed whole each time."""
    prompts = [list(prompt) for prompt in PROMPTS]
    answers: Answers = [[] for _ in prompts]
    for _ in range(TURNS):
        for number, answer in enumerate(hugging_face_greedy(model, prompts, TOKENS)):
            answers[number].append(tuple(answer))
            prompts[number] += [*answer, *ADDITIONS[number]]
    return answers


async def conversations(
    model: Path, run_dir: Path, stages: int, offload: str
) -> tuple[Answers, dict[str, float]]:
    """Six conversations of two turns that take turns, in a memory for two; the answers, and the instance's
    metrics of the second tier."""
    config = ClusterConfig(
        model=str(model),
        stages=stages,
        dtype="float32",
        kv_blocks=36,
        kv_offload=offload,
        metrics=True,
        run_dir=str(run_dir),
    )
    prompts = [list(prompt) for prompt in PROMPTS]
    answers: Answers = [[] for _ in prompts]
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        for _ in range(TURNS):
            for number, prompt in enumerate(prompts):
                completion = await client.generate(list(prompt), GREEDY)
                answers[number].append(tuple(completion.token_ids))
                prompt += [*completion.token_ids, *ADDITIONS[number]]
        figures = await asyncio.to_thread(scrape, run_dir)
    return answers, figures


async def test_answers_are_the_same_with_and_without(model: Path, tmp_path: Path) -> None:
    """Also where the disk is full after a while, which ends the tier and no request: as full as a limit on
    the size of files makes it."""
    without = await asyncio.to_thread(answers_of_hugging_face, model)
    place = tmp_path / "tier"
    place.mkdir()
    answers, figures = await conversations(model, tmp_path / "on", 2, f"4MiB:{place}")
    assert answers == without
    assert figures["kv_offload_loaded_blocks"] > 30
    assert figures["recoveries"] == 0
    assert not list(place.iterdir()), "the file has no name"

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        answers, figures = await conversations(model, tmp_path / "full", 1, "4MiB")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert answers == without
    assert (figures["recoveries"], figures["kv_offload_slots"]) == (1, 0)
