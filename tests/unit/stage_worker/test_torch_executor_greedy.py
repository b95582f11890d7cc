"""Pipelines of torch executors give exactly the greedy tokens of Hugging Face in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from stage_worker.models.native.library import load_kernels
from tests.tiny_models import FAMILIES, hugging_face_greedy, make_tiny_model, random_prompts
from tests.torch_pipeline import generate, make_pipeline

PROMPTS = random_prompts([1, 7, 16, 33, 50])
NEW_TOKENS = 12

Expected = tuple[Path, list[list[int]]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Expected]:
    """Makes each model, and its expected tokens, once."""
    made: dict[str, Expected] = {}

    def make(family: str, **options: Any) -> Expected:
        name = f"{family} {sorted(options.items())}"
        if name not in made:
            folder = make_tiny_model(family, tmp_path_factory.mktemp(family), **options)
            made[name] = folder, hugging_face_greedy(folder, PROMPTS, NEW_TOKENS)
        return made[name]

    return make


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_equals_hugging_face(family: str, stages: int, tiny: Callable[..., Expected]) -> None:
    folder, expected = tiny(family)
    assert generate(make_pipeline(folder, stages), PROMPTS, NEW_TOKENS) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("block_size", "chunk", "stagger"), [(8, 1000, 3), (8, 5, 0), (16, 9, 2)])
def test_chunks_and_mixed_steps(
    family: str, block_size: int, chunk: int, stagger: int, tiny: Callable[..., Expected]
) -> None:
    folder, expected = tiny(family)
    executors = make_pipeline(folder, 2, block_size=block_size)
    tokens = generate(executors, PROMPTS, NEW_TOKENS, block_size=block_size, chunk=chunk, stagger=stagger)
    assert tokens == expected


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        (
            "qwen3",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10_000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
        ("qwen3", {"attention_bias": True, "use_sliding_window": True, "sliding_window": 9}),
        ("mistral", {"sliding_window": None}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 6, "mlp_bias": True}),
    ],
)
def test_variants_equal_hugging_face(
    family: str, options: Mapping[str, Any], tiny: Callable[..., Expected]
) -> None:
    folder, expected = tiny(family, **options)
    assert generate(make_pipeline(folder, 2), PROMPTS, NEW_TOKENS) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_without_native_kernels(
    family: str, tiny: Callable[..., Expected], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEPIPE_NATIVE", "0")
    folder, expected = tiny(family)
    assert generate(make_pipeline(folder, 2), PROMPTS, NEW_TOKENS, chunk=20, stagger=1) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_native_tokens_do_not_depend_on_the_batch(dtype: str, tiny: Callable[..., Expected]) -> None:
    if load_kernels(getattr(torch, dtype), 1) is None:
        pytest.skip("no C compiler")
    folder, _ = tiny("qwen3")
    whole = generate(make_pipeline(folder, 1, dtype=dtype), PROMPTS, 40)
    for chunk, stagger in ((7, 0), (1000, 5), (1, 1)):
        executors = make_pipeline(folder, 2, dtype=dtype)
        assert generate(executors, PROMPTS, 40, chunk=chunk, stagger=stagger) == whole
    # A preempted sequence is computed anew from its tokens so far.
    longer = [(*prompt, *answer[:25]) for prompt, answer in zip(PROMPTS, whole, strict=True)]
    resumed = generate(make_pipeline(folder, 1, dtype=dtype), longer, 15)
    assert resumed == [answer[25:] for answer in whole]


def test_float16_runs_on_cpu(tiny: Callable[..., Expected]) -> None:
    folder, _ = tiny("llama")
    tokens = generate(make_pipeline(folder, 2, dtype="float16"), PROMPTS, 3)
    assert [len(answer) for answer in tokens] == [3] * len(PROMPTS)
