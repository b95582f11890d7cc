"""Tiny models with random weights, one per supported family, and what Hugging Face makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 300

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_BY_FAMILY: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    # Shorter than the prompts, so that it matters.
    "mistral": {"sliding_window": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 2},
    "qwen3": {"num_attention_heads": 6, "head_dim": 32},
    "smollm3": {"no_rope_layer_interval": 2},
}
FAMILIES = tuple(_BY_FAMILY)


def make_tiny_model(
    family: str, folder: Path, *, dtype: str = "float32", seed: int = 0, **options: Any
) -> Path:
    """Write a model of `family` as safetensors with config.json to `folder`, and return it.

    options: of the family's transformers configuration, over the small defaults here.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**_COMMON, **_BY_FAMILY[family], **options})
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than at the start of a training, so that tokens depend on all the context.
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1.0 if name.endswith("norm.weight") else noise)
    model.save_pretrained(folder)
    return folder


def hugging_face_greedy(folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """What transformers generates greedily in float32 for each prompt by itself, without stopping."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
            )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of random tokens (none of them special) with the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()) for length in lengths
    ]
