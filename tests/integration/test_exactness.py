"""The cluster computes what Hugging Face computes: real processes, the real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.types import BatchItem, Completion
from tidepipe_common.types.sampling import FinishReason, SamplingParams

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

PROMPTS = 12
LONGEST = 900
MAX_TOKENS = 10


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """12 prompts of 1 to 900 random tokens."""
    chance = np.random.default_rng(11)
    lengths = np.unique(np.geomspace(1, LONGEST, PROMPTS + 6).round().astype(int))[-PROMPTS:]
    lengths[0] = 1
    return [chance.integers(100, 49_000, size=length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def float32_model(model_path: Path) -> Any:
    """The model as Hugging Face runs it in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)


class Reference:
    """Hugging Face's greedy answers. By induction: an answer is one if each of its tokens is the most likely
    one after those before it, and so is the end of what ends early. So one pass over an answer tells, and
    what was told of an answer holds for the next cluster that gives it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._end = model.generation_config.eos_token_id
        self._known: set[tuple[int, ...]] = set()

    def check(self, prompt: list[int], tokens: list[int], most: int) -> None:
        """AssertionError if the answer of `most` tokens to the prompt is another."""
        if (whole := (*prompt, *tokens)) in self._known:
            return
        with torch.inference_mode():
            logits = self._model(torch.tensor([whole]), logits_to_keep=len(tokens) + 1).logits[0]
        likeliest = logits.argmax(-1).tolist()
        assert likeliest[: len(tokens)] == tokens
        assert len(tokens) == most or likeliest[len(tokens)] == self._end
        self._known.add(whole)


@pytest.fixture(scope="module")
def reference(float32_model: Any) -> Reference:
    return Reference(float32_model)


async def answer_together(
    config: ClusterConfig, prompts: list[list[int]], greedy: SamplingParams
) -> tuple[list[Completion], int]:
    """All prompts in flight at once; the completions and the number of preemptions."""
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        items = [BatchItem(prompt, greedy) for prompt in prompts]
        results = [result async for result in client.generate_batch(items, concurrency=len(items))]
        status = await client.status()
    results.sort(key=lambda result: result.index)
    instance = status.instances[0].status
    assert instance is not None
    assert instance.kv_blocks_free == instance.kv_blocks_total, "KV blocks leaked"
    return [result.unwrap() for result in results], instance.preemptions


@pytest.mark.parametrize(("stages", "block_size"), [(1, 16), (3, 8)], ids=["1 stage", "3 stages"])
async def test_greedy_tokens_equal_hugging_face(
    model_path: Path, prompts: list[list[int]], reference: Reference, stages: int, block_size: int
) -> None:
    """Token for token in float32, for any number of stages, with all prompts in flight together. (Two
    stages: below.)"""
    config = ClusterConfig(model=str(model_path), stages=stages, dtype="float32", block_size=block_size)
    greedy = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    completions, _ = await answer_together(config, prompts, greedy)
    for prompt, completion in zip(prompts, completions, strict=True):
        reference.check(prompt, list(completion.token_ids), MAX_TOKENS)


async def test_forced_preemption_changes_nothing(model_path: Path, reference: Reference) -> None:
    """Outputs that outgrow an overcommitted KV pool: sequences are recomputed, tokens stay those of
    Hugging Face."""
    chance = np.random.default_rng(3)
    prompts = [chance.integers(100, 49_000, size=length).tolist() for length in range(20, 130, 20)]
    config = ClusterConfig(
        model=str(model_path), stages=2, dtype="float32", block_size=16, kv_blocks=24, reserve=-50.0
    )
    greedy = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    completions, preemptions = await answer_together(config, prompts, greedy)
    assert preemptions > 0
    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = list(completion.token_ids)
        assert len(tokens) == 40
        reference.check(prompt, tokens, 40)


@pytest.fixture(scope="module")
def bfloat16_model(model_path: Path) -> Any:
    """The model as Hugging Face runs it in bfloat16."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)


async def test_bfloat16_agrees_with_hugging_face_teacher_forced(
    model_path: Path, prompts: list[list[int]], bfloat16_model: Any
) -> None:
    """Our greedy tokens, fed to Hugging Face's bfloat16 model: log-probabilities agree within 0.4 (mean
    0.05), and where the most likely token differs it is a near-tie."""
    chosen = prompts[:6]
    greedy = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0)
    config = ClusterConfig(model=str(model_path), stages=2, dtype="bfloat16")
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        items = [BatchItem(prompt, greedy) for prompt in chosen]
        results = [result async for result in client.generate_batch(items, concurrency=len(items))]
    differences = []
    for result in results:
        prompt, answer = chosen[result.index], result.unwrap().answers[0]
        assert answer.finish_reason is FinishReason.LENGTH
        tokens = list(answer.token_ids)
        with torch.inference_mode():
            logits = bfloat16_model(torch.tensor([prompt + tokens])).logits[0].float()
        theirs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        ours = torch.tensor([position.chosen.logprob for position in answer.logprobs])
        of_chosen = theirs[torch.arange(len(tokens)), torch.tensor(tokens)]
        differences.append((ours - of_chosen).abs())
        gap = theirs.max(dim=-1).values - of_chosen
        assert gap.max() <= 0.25, "another token is clearly more likely"
    everything = torch.cat(differences)
    assert everything.mean() <= 0.05
    assert everything.max() <= 0.4
