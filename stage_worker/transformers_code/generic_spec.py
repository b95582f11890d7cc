"""What scheduling, splitting and the KV pool need to know of a model of the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stage_worker.models.spec import ModelSpec, RopeSpec
from stage_worker.transformers_code.skeleton import Skeleton, pool_head_dim

_UNNAMED_CONTEXT = 2048
"""Tokens, for a model whose configuration says nothing."""
_CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
)


def spec_of(skeleton: Skeleton, ends: Sequence[int], native_dtype: str) -> ModelSpec:
    """The spec of a model whose layers have been looked at. Heads are those of its widest layer."""
    config: Any = skeleton.model.config.get_text_config()
    calls = [call for _, call in skeleton.calls.values()]
    layers = len(skeleton.layer_list)
    hidden = int(config.hidden_size)
    heads, kv_heads = max(call.heads for call in calls), max(call.kv_heads for call in calls)
    head_dim = pool_head_dim(skeleton.calls)
    stored = sum(tensor.numel() for tensor in skeleton.layer_list.parameters()) // layers
    attention = hidden * head_dim * 2 * (heads + kv_heads)
    return ModelSpec(
        architecture=str(skeleton.model.config.model_type),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=max(1, (stored - attention) // (3 * hidden)),
        vocab_size=int(config.vocab_size),
        context_length=_context(config),
        eos_token_ids=tuple(ends),
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        rms_eps=1e-6,
        rope=RopeSpec(),
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_windows=tuple(
            call.window for _, call in sorted(skeleton.calls.values(), key=lambda one: one[0])
        ),
        rope_layers=(False,) * layers,
        native_dtype=native_dtype,
    )


def _context(config: Any) -> int:
    for name in _CONTEXT_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return _UNNAMED_CONTEXT
