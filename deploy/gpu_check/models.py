"""Models with random weights, of the shape of Llama 3.2 1B or tiny, with a tokenizer of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny_models import make_tiny_model
from tests.tiny_tokenizer import make_tokenizer

BILLION: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def random_model(folder: Path, *, tiny: bool) -> Path:
    """The one in `folder`, made if no part before has made it (2.5 GB)."""
    model = folder / ("tiny-model" if tiny else "model")
    if (model / "tokenizer.json").exists():
        return model
    if tiny:
        make_tiny_model("llama", model)
    else:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        config = AutoConfig.for_model("llama", **BILLION)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(model)
    make_tokenizer(model)
    return model
