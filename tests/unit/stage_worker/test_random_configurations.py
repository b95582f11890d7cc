"""Configurations drawn at random from what families allow: logits as Hugging Face computes them, or refused.

CHECKPOINT_DRAWS=2000 draws more than the few that the suite has time for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_models import FAMILIES
from tests.unit.stage_worker.test_checkpoint_values import our_logits, their_logits
from tidepipe_common.errors import ModelError

DRAWS = int(os.environ.get("CHECKPOINT_DRAWS", "20"))
WINDOWS = ["sliding_attention", "full_attention"] * 2


def rope(draw: Random) -> dict[str, Any]:
    kind = draw.choice(["default", "linear", "dynamic", "llama3", "yarn", "yarn"])
    said: dict[str, Any] = {draw.choice(["rope_type", "type"]): kind}
    if kind != "default":
        said["factor"] = draw.choice([1, 2.0, 4.0, 0.5, 40])
    if kind in ("llama3", "yarn") and draw.random() < 0.8:
        said["original_max_position_embeddings"] = draw.choice([8, 32, 512])
    if kind == "llama3":
        said |= {"low_freq_factor": draw.choice([1, 0.5]), "high_freq_factor": draw.choice([4.0, 2])}
    options: dict[str, list[Any]] = {
        "attention_factor": [1.3, None],
        "beta_fast": [16, None, 0],
        "beta_slow": [2, None],
        "mscale": [0.707, 1, 0],
        "mscale_all_dim": [0.707, 1.0, 0],
        "truncate": [True, False, None],
    }
    if kind == "yarn":
        said |= {key: draw.choice(values) for key, values in options.items() if draw.random() < 0.3}
    return said


def configuration(draw: Random) -> dict[str, Any]:
    family = draw.choice(FAMILIES)
    options: dict[str, list[Any]] = {
        "max_position_embeddings": [64, 512],
        "rms_norm_eps": [1e-5, 0.1],
        "hidden_act": ["silu", "swish"],
        "tie_word_embeddings": [True, False],
        "rope_theta": [10_000, 5e5, 100],
        "rope_scaling": [None, rope(draw), rope(draw)],
        "rope_parameters": [rope(draw) | {"rope_theta": 7e3}],
        "sliding_window": [1, 7, 12, 4096, None],
        "layer_types": [WINDOWS, ["full_attention"] * 4, None],
        "dtype": ["float32", "bfloat16", None],
    }
    if family in ("llama", "qwen3", "smollm3"):
        options["attention_bias"] = [True, False]
    if family in ("llama", "smollm3"):
        options["mlp_bias"] = [True, False]
    if family in ("qwen2", "qwen3", "smollm3"):
        options |= {"use_sliding_window": [True, True, False], "max_window_layers": [0, 1, 2, 28]}
    if family == "smollm3":
        options |= {"no_rope_layers": [[1, 0, 0, 1], None], "no_rope_layer_interval": [1, 2, 100]}
    return {
        **{"model_type": family, "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "pad_token_id": None, "intermediate_size": draw.choice([96, 33])},
        **{"num_key_value_heads": draw.choice([1, 2, 4]), "head_dim": draw.choice([8, 16, 32])},
        **{key: draw.choice(values) for key, values in options.items() if draw.random() < 0.6},
    }


def save_model(folder: Path, said: dict[str, Any], seed: int) -> None:
    """Random weights of what transformers makes of the configuration, beside it as it is."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(said))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2 + name.endswith("norm.weight")
        for name, tensor in model.state_dict().items()
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.timeout(0 if DRAWS > 20 else 120)
def test_random_configurations(tmp_path: Path) -> None:
    compared = 0
    for seed in range(DRAWS):
        draw, folder = Random(seed), tmp_path / str(seed)
        said = configuration(draw)
        try:
            save_model(folder, said, seed)
            expected = their_logits(folder)
        except Exception:  # what transformers does not take need not be taken here
            continue
        try:
            ours = our_logits(folder, draw.choice([1, 2]))
        except ModelError:
            continue
        assert (ours - expected).abs().max() < 2e-5 * max(10, expected.abs().max()), (seed, said)
        compared += 1
    assert compared > DRAWS // 3
