"""Reads a Hugging Face config.json into a ModelSpec, without transformers (slow to import, and large)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from common.errors import ModelError
from stage_worker.models.spec import (
    DTYPES,
    ROPE_KINDS,
    SUPPORTED_ARCHITECTURES,
    ModelSpec,
    RopeSpec,
    unsupported_architecture,
)

JsonObject = Mapping[str, Any]
_T = TypeVar("_T", int, float, bool)


@dataclass(frozen=True, slots=True)
class _Family:
    """What a config.json of the family leaves out, and what the family's layers have."""

    context_length: int
    tied: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None
    theta: float = 10_000.0
    sliding_window: int | None = None
    fixed_qkv_bias: bool = False
    bias_options: bool = False
    qk_norm: bool = False
    eos: int | None = None


_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(context_length=2048, bias_options=True, eos=2),
    "mistral": _Family(context_length=131_072, kv_heads=8, sliding_window=4096, eos=2),
    "qwen2": _Family(context_length=32_768, kv_heads=32, sliding_window=4096, fixed_qkv_bias=True),
    "qwen3": _Family(
        context_length=32_768, kv_heads=32, head_dim=128, sliding_window=4096, bias_options=True, qk_norm=True
    ),
    "smollm3": _Family(
        context_length=32_768, tied=True, kv_heads=4, theta=2_000_000.0, bias_options=True, eos=128_001
    ),
}


def from_hf_config(
    config: JsonObject, generation_config: JsonObject | None = None, *, source: str = "config.json"
) -> ModelSpec:
    """Make the spec from config.json (transformers 4 and 5) and, if there is one, generation_config.json.

    source: named in messages. Raises ModelError for what the decoder cannot run.
    """
    model_type = str(config.get("model_type", ""))
    family = _FAMILIES.get(model_type)
    if family is None or model_type not in SUPPORTED_ARCHITECTURES:
        raise unsupported_architecture(source, model_type or "(no model_type)")
    _refuse_unsupported(config, source)

    layers = _number(config, "num_hidden_layers", None, int, source)
    hidden = _number(config, "hidden_size", None, int, source)
    heads = _number(config, "num_attention_heads", None, int, source)
    if heads < 1:
        raise ModelError(f"{source}: num_attention_heads must be at least 1, got {heads}")
    context_length = _number(config, "max_position_embeddings", family.context_length, int, source)
    head_dim = _number(config, "head_dim", family.head_dim or hidden // heads, int, source)
    bias = family.bias_options and _number(config, "attention_bias", False, bool, source)
    # An explicit null means one per query head, whatever the family does without the key.
    kv_heads = heads if "num_key_value_heads" in config else family.kv_heads or heads
    rope_layers = _rope_layers(config, model_type, layers, source)
    spec = ModelSpec(
        architecture=model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads", kv_heads, int, source),
        head_dim=head_dim,
        intermediate=_number(config, "intermediate_size", None, int, source),
        vocab_size=_number(config, "vocab_size", None, int, source),
        context_length=context_length,
        eos_token_ids=_eos_token_ids(config, generation_config or {}, family.eos, source),
        tied_embeddings=_number(config, "tie_word_embeddings", family.tied, bool, source),
        rms_eps=_number(config, "rms_norm_eps", 1e-6, float, source),
        rope=_rope(config, family.theta, context_length, source),
        qkv_bias=family.fixed_qkv_bias or bias,
        o_bias=bias,
        mlp_bias=model_type in ("llama", "smollm3") and _number(config, "mlp_bias", False, bool, source),
        qk_norm=family.qk_norm,
        sliding_windows=_sliding_windows(config, model_type, family, rope_layers, source),
        rope_layers=rope_layers,
        native_dtype=_native_dtype(config, source),
    )
    spec.check(source)
    return spec


def _refuse_unsupported(config: JsonObject, source: str) -> None:
    names = config.get("architectures") or []
    if names and not any(str(name).endswith("ForCausalLM") for name in names):
        raise ModelError(f"{source}: {', '.join(map(str, names))} is not a language model with an LM head")
    if config.get("quantization_config"):
        raise ModelError(
            f"{source}: quantized safetensors are not supported; use the plain checkpoint or a GGUF file"
        )
    if str(config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise ModelError(f"{source}: activation {config['hidden_act']!r} is not supported, only silu")
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(key):
            raise ModelError(f"{source}: mixture-of-experts models are not supported ({key})")


def _number(config: JsonObject, key: str, default: _T | None, kind: type[_T], source: str) -> _T:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"{source}: {key} is missing")
    fits = isinstance(value, bool) == (kind is bool) and isinstance(value, (int, float))
    if not fits or (kind is int and value != int(value)) or not math.isfinite(value):
        raise ModelError(f"{source}: {key} must be of type {kind.__name__}, got {value!r}")
    return kind(value)


def _eos_token_ids(
    config: JsonObject, generation_config: JsonObject, default: int | None, source: str
) -> tuple[int, ...]:
    """Ids that end an output; generation_config.json wins, since chat models widen the list there."""
    value = generation_config.get("eos_token_id")
    if value is None:
        value = config.get("eos_token_id", default)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids):
        raise ModelError(f"{source}: eos_token_id must be token ids, got {value!r}")
    return tuple(dict.fromkeys(ids))


def _native_dtype(config: JsonObject, source: str) -> str:
    value = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if value not in DTYPES:
        raise ModelError(f"{source}: unsupported data type {value}; supported: {', '.join(DTYPES)}")
    return value


def _rope_layers(config: JsonObject, model_type: str, layers: int, source: str) -> tuple[bool, ...]:
    if model_type != "smollm3":
        return (True,) * layers
    listed = config.get("no_rope_layers")
    if listed is None:
        interval = _number(config, "no_rope_layer_interval", 4, int, source)
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    # In spite of its name, the list has 1 where RoPE is used.
    return tuple(bool(used) for used in listed[:layers])


def _sliding_windows(
    config: JsonObject, model_type: str, family: _Family, rope_layers: tuple[bool, ...], source: str
) -> tuple[int | None, ...]:
    layers = len(rope_layers)
    window = config.get("sliding_window", family.sliding_window)
    if model_type == "llama" or window is None:
        return (None,) * layers
    window = _number({"sliding_window": window}, "sliding_window", None, int, source)
    if model_type == "mistral":
        return (window,) * layers
    if not config.get("use_sliding_window", False):
        return (None,) * layers
    layer_types = config.get("layer_types")
    if layer_types is not None:
        unknown = set(layer_types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ModelError(f"{source}: unsupported layer types {sorted(unknown)}")
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    if model_type == "smollm3":
        return tuple(None if uses_rope else window for uses_rope in rope_layers)
    first = _number(config, "max_window_layers", 28, int, source)
    return tuple(window if layer >= first else None for layer in range(layers))


def _rope(config: JsonObject, default_theta: float, context_length: int, source: str) -> RopeSpec:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    scaling: JsonObject = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise ModelError(f"{source}: RoPE type {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
    for place in (scaling, config):
        if place.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise ModelError(f"{source}: partial_rotary_factor other than 1 is not supported")
    theta = _number(
        scaling, "rope_theta", _number(config, "rope_theta", default_theta, float, source), float, source
    )
    if kind == "default":
        return RopeSpec(theta=theta)
    original = config.get("original_max_position_embeddings") or scaling.get(
        "original_max_position_embeddings"
    )
    original_context = _number({"original": original}, "original", context_length, int, source)
    # Yarn may leave the factor out; it then follows from the two context lengths.
    default_factor = context_length / original_context if kind == "yarn" else None
    factor = _number(scaling, "factor", default_factor, float, source)
    if kind == "linear":
        return RopeSpec(kind="linear", theta=theta, factor=factor)
    if kind == "llama3":
        return RopeSpec(
            kind="llama3",
            theta=theta,
            factor=factor,
            original_context=original_context,
            low_freq_factor=_number(scaling, "low_freq_factor", None, float, source),
            high_freq_factor=_number(scaling, "high_freq_factor", None, float, source),
        )
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_context=original_context,
        beta_fast=_number(scaling, "beta_fast", 32.0, float, source) or 32.0,
        beta_slow=_number(scaling, "beta_slow", 1.0, float, source) or 1.0,
        truncate=_number(scaling, "truncate", True, bool, source),
        attention_factor=_yarn_attention_factor(scaling, factor, source),
    )


def _yarn_attention_factor(scaling: JsonObject, factor: float, source: str) -> float:
    if scaling.get("attention_factor") is not None:
        return _number(scaling, "attention_factor", None, float, source)

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    weight = _number(scaling, "mscale", 0.0, float, source)
    weight_all = _number(scaling, "mscale_all_dim", 0.0, float, source)
    return mscale(weight) / mscale(weight_all) if weight and weight_all else mscale(1.0)
