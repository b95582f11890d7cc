"""A tiny configuration that keeps what another one has of kinds, and loses its size."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

LAYERS = 6
"""Enough for three stages, and for patterns of layers as they are found (five of a kind, then another)."""
_WIDTH, _HEADS, _HEAD_DIM, _VOCAB = 64, 4, 16, 320
_WINDOW = 12

_SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), _WIDTH
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), _HEADS
    ),
    **dict.fromkeys(("head_dim", "kv_channels", "global_head_dim", "attention_head_dim"), _HEAD_DIM),
    **dict.fromkeys(
        (
            "intermediate_size",
            "n_inner",
            "ffn_dim",
            "ffn_hidden_size",
            "decoder_ffn_dim",
            "d_ff",
            "dense_intermediate_size",
        ),
        96,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "expert_ffn_hidden_size",
            "intermediate_size_mlp",
            "prefix_dense_intermediate_size",
        ),
        48,
    ),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), _VOCAB),
    **dict.fromkeys(("hidden_size_per_layer_input",), 16),
    **dict.fromkeys(
        ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim_v"),
        16,
    ),
    **dict.fromkeys(("rotary_dim",), 8),
    **dict.fromkeys(
        ("sliding_window", "attention_chunk_size", "window_size", "sliding_window_size"), _WINDOW
    ),
    **dict.fromkeys(("index_head_dim",), 16),
    **dict.fromkeys(("index_n_heads",), 2),
}
_AT_MOST: dict[str, int] = {
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts"), 8
    ),
    **dict.fromkeys(
        (
            "num_experts_per_tok",
            "num_experts_per_token",
            "moe_topk",
            "moe_k",
            "moe_top_k",
            "num_selected_experts",
            "n_group",
            "topk_group",
            "num_expert_groups",
        ),
        2,
    ),
    **dict.fromkeys(
        ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "zero_expert_num"), 1
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx"), 512
    ),
}
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_SHARING = "num_kv_shared_layers"
_NO_SIZES = ("rope_parameters", "rope_scaling", "id2label", "label2id", "quantization_config")
_EXPERTS = ("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group")
_KV_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_kv_heads",
    "kv_n_heads",
    "num_global_key_value_heads",
    "swa_num_key_value_heads",
    "multi_query_group_num",
)


def tiny_config(values: dict[str, Any], model_type: str) -> PretrainedConfig:
    """The same model, a few thousand times smaller."""
    return CONFIG_MAPPING[model_type](**tiny_values(values))


def tiny_values(values: dict[str, Any], heads: int = _HEADS) -> dict[str, Any]:
    """As above, of a configuration's values. heads: that it has if it does not say."""
    names = [name for name in _LAYER_COUNTS if isinstance(values.get(name), int)]
    before = values[names[0]] if names else 0
    kept = _kept_layers(before, values) if before else []
    own = (values[name] for name in _SIZES if _SIZES[name] == _HEADS and isinstance(values.get(name), int))
    heads = next(own, heads)
    return {name: _shrunk(name, value, before, kept, heads) for name, value in values.items()}


def _kept_layers(count: int, values: dict[str, Any]) -> list[int]:
    """Numbers of the layers that a tiny model has.

    The first ones; but if the last ones of a model attend to keys and values of earlier ones, half of each,
    and in both halves all kinds that there are.
    """
    shared = values.get(_SHARING)
    kinds = values.get("layer_types")
    if not shared or not isinstance(kinds, list) or not 0 < shared < count == len(kinds):
        return list(range(min(count, LAYERS)))
    first, kept = count - shared, []
    for part in (range(first - 1, -1, -1), range(first, count)):
        chosen = list({kinds[index]: index for index in reversed(part)}.values())
        others = [index for index in part if index not in chosen]
        kept += sorted([*chosen, *others][: LAYERS // 2])
    return kept


def _shrunk(name: str, value: Any, before: int, kept: list[int], heads: int) -> Any:
    layers = len(kept)
    if name == "per_layer_config" and isinstance(value, dict):
        numbers = {str(index): number for number, index in enumerate(kept)}
        return {
            numbers[str(key)]: tiny_values(one, heads) for key, one in value.items() if str(key) in numbers
        }
    if isinstance(value, dict):
        return value if name in _NO_SIZES else tiny_values(value, heads)
    if isinstance(value, list) and before and len(value) == before:
        return [_shrunk(name, value[index], 0, [], heads) for index in kept]
    if value is None:
        # Left to be worked out from sizes that are others now.
        if name in _EXPERTS:
            return _AT_MOST[name]
        return _HEAD_DIM if name == "head_dim" else _HEADS if name in _KV_HEADS else None
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name in _LAYER_COUNTS:
        return layers
    if name == _SHARING:
        return min(value, layers // 2)
    if name.endswith("_token_id"):
        return value if value < _VOCAB else 1
    if name in _KV_HEADS:
        return _HEADS if value == heads else 1 if value == 1 else 2
    if name in _SIZES:
        return _SIZES[name]
    if name in _AT_MOST:
        return min(value, _AT_MOST[name])
    return value
