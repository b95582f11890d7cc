"""Dimensions of well-known models, so that planning needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidepipe_common.errors import ConfigError
from tidepipe_common.types.model_shape import ModelShape


def _shape(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    vocab: int,
    context: int,
    *,
    experts: tuple[int, int, int] = (0, 0, 0),
) -> ModelShape:
    """experts: of a layer, of a token, and their inner size."""
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
        experts=experts[0],
        experts_per_token=experts[1],
        expert_intermediate=experts[2],
    )


SHAPES: Mapping[str, ModelShape] = {
    "llama2-13b": _shape(40, 5120, 40, 40, 13824, 32000, 4096),
    "llama2-70b": _shape(80, 8192, 64, 8, 28672, 32000, 4096),
    "llama-30b": _shape(60, 6656, 52, 52, 17920, 32000, 2048),
    "codellama-34b": _shape(48, 8192, 64, 8, 22016, 32000, 16384),
    "qwen2.5-32b": _shape(64, 5120, 40, 8, 27648, 152064, 32768),
    "qwen2-72b": _shape(80, 8192, 64, 8, 29568, 152064, 32768),
    "mixtral-8x7b": _shape(32, 4096, 32, 8, 0, 32000, 32768, experts=(8, 2, 14336)),
    "qwen3-30b-a3b": _shape(48, 2048, 32, 4, 0, 151936, 40960, experts=(128, 8, 768)),
}
"""From the models' published configurations."""


_LARGEST = 10**12
"""Of a shape's numbers: beyond all models, and products of them are still numbers that floats hold."""


def named_shape(name: str) -> ModelShape | None:
    """The model of that name, in any case; None if it is not one of SHAPES."""
    return SHAPES.get(name.lower().replace("_", "-"))


def shape_from_config(config: Mapping[str, Any], source: str) -> ModelShape:
    """From the keys of a Hugging Face config.json, or those of ModelShape. ConfigError says what is wrong."""

    def number(*names: str, default: int | None = None) -> int:
        for name in names:
            value = config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST:
                return value
            if value is not None:
                raise ConfigError(
                    f"{source}: {name} must be a positive integer, {_LARGEST:g} at most, got {value!r:.40}"
                )
        if default is None:
            raise ConfigError(f"{source}: {names[0]} is missing")
        return default

    experts = number("num_local_experts", "num_experts", "n_routed_experts", "experts", default=0)
    hidden = number("hidden_size", "hidden")
    heads = number("num_attention_heads", "heads")
    shape = ModelShape(
        architecture=str(config.get("model_type", config.get("architecture", "llama"))),
        layers=number("num_hidden_layers", "layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", "kv_heads", default=heads),
        head_dim=number("head_dim", default=max(1, hidden // heads)),
        intermediate=(
            number("shared_expert_intermediate_size", default=0)
            if experts
            else number("intermediate_size", "intermediate")
        ),
        vocab_size=number("vocab_size"),
        context_length=number("max_position_embeddings", "context_length", default=4096),
        eos_token_ids=(2,),
        tied_embeddings=bool(config.get("tie_word_embeddings", config.get("tied_embeddings", False))),
        experts=experts,
        experts_per_token=number("num_experts_per_tok", "experts_per_token") if experts else 0,
        expert_intermediate=(
            number("moe_intermediate_size", "expert_intermediate", "intermediate_size") if experts else 0
        ),
    )
    if shape.fault:
        raise ConfigError(f"{source}: {shape.fault}")
    return shape
