"""What scheduling, splitting and the KV pool need to know of a model of the library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stage_worker.models.spec import LARGEST, ModelSpec, RopeSpec
from stage_worker.transformers_code.attention_calls import AttentionCall, UnsuitableError
from stage_worker.transformers_code.skeleton import Skeleton, first_position, pool_head_dim

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "num_selected_experts",
)
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
    _check(calls)
    layers = len(skeleton.layer_list)
    hidden = int(config.hidden_size)
    heads, kv_heads = max(call.heads for call in calls), max(call.kv_heads for call in calls)
    head_dim = pool_head_dim(skeleton.calls)
    attention = hidden * head_dim * 2 * (heads + kv_heads)
    experts = experts_of(config)
    in_all, in_experts = _weights(skeleton, experts)
    expert = in_experts // (3 * hidden * layers * experts) if experts else 0
    return ModelSpec(
        architecture=str(skeleton.model.config.model_type),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        # As of MLPs with three products, whatever the layers have.
        intermediate=max(0, ((in_all - in_experts) // layers - attention) // (3 * hidden)),
        vocab_size=int(config.vocab_size),
        context_length=min(LARGEST, max(1, _context(config) - first_position(skeleton.model))),
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
        experts=experts if expert else 0,
        experts_per_token=min(experts, _number(config, _EXPERTS_PER_TOKEN) or 1) if expert else 0,
        expert_intermediate=expert,
        handed=0 if skeleton.carried.plain else skeleton.carried.most,
    )


def _check(calls: Sequence[AttentionCall]) -> None:
    """UnsuitableError for attention that makes no sense: a tiny model has sizes of its own, and passes."""
    for call in calls:
        sizes = (call.heads, call.kv_heads, call.key_dim, call.value_dim)
        if not all(1 <= size <= LARGEST for size in sizes) or call.heads % call.kv_heads:
            raise UnsuitableError(
                f"attention of {call.heads} heads over {call.kv_heads} key heads of {call.key_dim} values"
            )
        for what, reach in (("window", call.window), ("chunk", call.chunk)):
            if reach is not None and not 1 <= reach <= LARGEST:
                raise UnsuitableError(f"attention with a {what} of {reach} tokens")
        if not math.isfinite(call.scaling) or not math.isfinite(call.softcap or 0):
            raise UnsuitableError("attention whose scores are scaled by no number")


def _weights(skeleton: Skeleton, experts: int) -> tuple[int, int]:
    """Of all layers together: all weights, and those of experts that are stored as one tensor."""
    in_all = in_experts = 0
    for tensor in skeleton.layer_list.parameters():
        in_all += tensor.numel()
        if experts and tensor.dim() == 3 and tensor.shape[0] == experts:
            in_experts += tensor.numel()
    return in_all, in_experts


def experts_of(config: Any) -> int:
    """Experts of a layer that a configuration names; 0 for none."""
    return _number(config, _EXPERTS)


def _number(config: Any, names: Sequence[str]) -> int:
    """The first of these that a configuration has; 0 if none."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _context(config: Any) -> int:
    return _number(config, _CONTEXT_NAMES) or _UNNAMED_CONTEXT
