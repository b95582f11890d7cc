"""Dimensions of well-known models, so that planning needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidepipe_common.errors import ConfigError
from tidepipe_common.types.model_shape import ModelShape


def _shape(
    layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, context: int
) -> ModelShape:
    return ModelShape(
        architecture="llama",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        intermediate=ffn,
        vocab_size=vocab,
        context_length=context,
        eos_token_ids=(2,),
        tied_embeddings=False,
    )


SHAPES: Mapping[str, ModelShape] = {
    "llama2-13b": _shape(40, 5120, 40, 40, 13824, 32000, 4096),
    "llama2-70b": _shape(80, 8192, 64, 8, 28672, 32000, 4096),
    "llama-30b": _shape(60, 6656, 52, 52, 17920, 32000, 2048),
    "codellama-34b": _shape(48, 8192, 64, 8, 22016, 32000, 16384),
    "qwen2.5-32b": _shape(64, 5120, 40, 8, 27648, 152064, 32768),
    "qwen2-72b": _shape(80, 8192, 64, 8, 29568, 152064, 32768),
}
"""From the models' published configurations."""


def named_shape(name: str) -> ModelShape | None:
    """The model of that name, in any case; None if it is not one of SHAPES."""
    return SHAPES.get(name.lower().replace("_", "-"))


def shape_from_config(config: Mapping[str, Any], source: str) -> ModelShape:
    """From the keys of a Hugging Face config.json, or those of ModelShape. ConfigError names what lacks."""

    def number(*names: str, default: int | None = None) -> int:
        for name in names:
            value = config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            if value is not None:
                raise ConfigError(f"{source}: {name} must be a positive integer, got {value!r}")
        if default is None:
            raise ConfigError(f"{source}: {names[0]} is missing")
        return default

    hidden = number("hidden_size", "hidden")
    heads = number("num_attention_heads", "heads")
    return ModelShape(
        architecture=str(config.get("model_type", config.get("architecture", "llama"))),
        layers=number("num_hidden_layers", "layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", "kv_heads", default=heads),
        head_dim=number("head_dim", default=max(1, hidden // heads)),
        intermediate=number("intermediate_size", "intermediate"),
        vocab_size=number("vocab_size"),
        context_length=number("max_position_embeddings", "context_length", default=4096),
        eos_token_ids=(2,),
        tied_embeddings=bool(config.get("tie_word_embeddings", config.get("tied_embeddings", False))),
    )
