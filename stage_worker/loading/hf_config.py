"""The reader of a Hugging Face config.json: a ModelSpec, without transformers (slow to import, and large)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stage_worker.loading.config_keys import refuse_unknown_keys, refuse_unknown_rope_keys
from stage_worker.loading.quantization_config import read_quantization
from stage_worker.models.spec import (
    DTYPES,
    LARGEST,
    MOST_LAYERS,
    ROPE_KINDS,
    SUPPORTED_ARCHITECTURES,
    ModelSpec,
    RopeKind,
    RopeSpec,
    unsupported_architecture,
)
from tidepipe_common.errors import ModelError
from tidepipe_common.text.text import quoted

JsonObject = Mapping[str, Any]
_T = TypeVar("_T", int, float, bool)


@dataclass(frozen=True, slots=True)
class _Family:
    """What a config.json of the family says by keys of its own, what it leaves out, and what the family's
    layers have."""

    keys: frozenset[str]
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


_KINDS: Mapping[type, str] = {int: "an integer", float: "a number", bool: "true or false"}
_LARGEST_NUMBER = 2**63
_MOST_ENDS = 1024
_SHOWN = 100
# transformers runs Mistral's alternating windows under a name of its own.
_ALIASES: Mapping[str, str] = {"ministral": "mistral"}
# Names of the same thing; "dynamic" stretches what lies beyond the context length, where nothing goes.
_ROPE_ALIASES: Mapping[str, RopeKind] = {"dynamic": "default"}

_FAMILIES: Mapping[str, _Family] = {
    # Hugging Face's Llama has no window, whatever the key says.
    "llama": _Family(
        frozenset({"attention_bias", "mlp_bias", "sliding_window"}),
        context_length=2048,
        bias_options=True,
        eos=2,
    ),
    "mistral": _Family(
        frozenset({"sliding_window"}), context_length=131_072, kv_heads=8, sliding_window=4096, eos=2
    ),
    # The biases of its queries, keys and values are fixed.
    "qwen2": _Family(
        frozenset({"attention_bias", "use_sliding_window", "sliding_window"}),
        context_length=32_768,
        kv_heads=32,
        sliding_window=4096,
        fixed_qkv_bias=True,
    ),
    "qwen3": _Family(
        frozenset({"attention_bias", "use_sliding_window", "sliding_window"}),
        context_length=32_768,
        kv_heads=32,
        head_dim=128,
        sliding_window=4096,
        bias_options=True,
        qk_norm=True,
    ),
    "smollm3": _Family(
        frozenset(
            {
                "attention_bias",
                "mlp_bias",
                "use_sliding_window",
                "sliding_window",
                "no_rope_layers",
                "no_rope_layer_interval",
            }
        ),
        context_length=32_768,
        tied=True,
        kv_heads=4,
        theta=2_000_000.0,
        bias_options=True,
        eos=128_001,
    ),
}


def is_native(config: JsonObject) -> bool:
    """True for the families that have code of TidePipe's own."""
    model_type = str(config.get("model_type", ""))
    return _ALIASES.get(model_type, model_type) in SUPPORTED_ARCHITECTURES


def from_hf_config(
    config: JsonObject,
    generation_config: JsonObject | None = None,
    *,
    end_tokens: Sequence[int] = (),
    source: str = "config.json",
) -> ModelSpec:
    """Make the spec from config.json (transformers 4 and 5) and, if there is one, generation_config.json.

    end_tokens: more tokens that end an output, from the tokenizer. source: named in messages.
    Raises ModelError for what the decoder cannot run, and for what might change its computation unbeknown.
    """
    model_type = str(config.get("model_type", ""))
    model_type = _ALIASES.get(model_type, model_type)
    family = _FAMILIES.get(model_type)
    if family is None or model_type not in SUPPORTED_ARCHITECTURES:
        raise unsupported_architecture(source, model_type or "(no model_type)")
    _refuse_unsupported(config, source)
    refuse_unknown_keys(config, model_type, family.keys, source)

    layers = _dimension(config, "num_hidden_layers", None, source, most=MOST_LAYERS)
    hidden = _dimension(config, "hidden_size", None, source)
    heads = _dimension(config, "num_attention_heads", None, source)
    context_length = _dimension(config, "max_position_embeddings", family.context_length, source)
    if config.get("head_dim") is None and family.head_dim is None and hidden % heads:
        raise ModelError(
            f"{source}: hidden_size {hidden} is no multiple of num_attention_heads {heads}, and there is no "
            "head_dim"
        )
    head_dim = _dimension(config, "head_dim", family.head_dim or hidden // heads, source)
    bias = family.bias_options and _number(config, "attention_bias", False, bool, source)
    # An explicit null means one per query head, whatever the family does without the key.
    kv_heads = heads if "num_key_value_heads" in config else family.kv_heads or heads
    rope_layers = _rope_layers(config, model_type, layers, source)
    vocab_size = _dimension(config, "vocab_size", None, source)
    spec = ModelSpec(
        architecture=model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_dimension(config, "num_key_value_heads", kv_heads, source),
        head_dim=head_dim,
        intermediate=_dimension(config, "intermediate_size", None, source),
        vocab_size=vocab_size,
        context_length=context_length,
        eos_token_ids=_eos_token_ids(
            config, generation_config or {}, end_tokens, family.eos, vocab_size, source
        ),
        tied_embeddings=_number(config, "tie_word_embeddings", family.tied, bool, source),
        rms_eps=_number(config, "rms_norm_eps", 1e-6, float, source),
        rope=_rope(config, family.theta, context_length, source),
        qkv_bias=family.fixed_qkv_bias or bias,
        o_bias=bias,
        mlp_bias=model_type in ("llama", "smollm3") and _number(config, "mlp_bias", False, bool, source),
        qk_norm=family.qk_norm,
        sliding_windows=_sliding_windows(config, model_type, family, rope_layers, source),
        rope_layers=rope_layers,
        native_dtype=native_dtype(config, source),
    )
    spec.check(source)
    return spec


def _refuse_unsupported(config: JsonObject, source: str) -> None:
    # A bare model is one with an LM head too, where that is the embedding or stored beside it.
    refuse_other_heads(config, ("ForCausalLM", "Model"), source)
    read_quantization(config, source)
    if str(config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise ModelError(f"{source}: activation {quoted(config['hidden_act'])} is not supported, only silu")
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(key):
            raise ModelError(f"{source}: mixture-of-experts models are not supported ({key})")


def refuse_other_heads(config: JsonObject, heads: tuple[str, ...], source: str) -> None:
    """ModelError for a model that ends with anything but an LM head. heads: ends of names with one."""
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise ModelError(f"{source}: architectures must be a list of names, got {quoted(names)}")
    if names and not any(str(name).endswith(heads) and "Reward" not in str(name) for name in names):
        listed = ", ".join(map(str, names))[:_SHOWN]
        raise ModelError(f"{source}: {listed} is not a language model with an LM head")


def _dimension(config: JsonObject, key: str, default: int | None, source: str, *, most: int = LARGEST) -> int:
    value = _number(config, key, default, int, source)
    if not 1 <= value <= most:
        bound = "at least 1" if value < 1 else f"at most {most}"
        raise ModelError(f"{source}: {key} must be {bound}, got {value}")
    return value


def _number(config: JsonObject, key: str, default: _T | None, kind: type[_T], source: str) -> _T:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"{source}: {key} is missing")
    fits = isinstance(value, bool) == (kind is bool) and isinstance(value, (int, float))
    # Also false for what is no number.
    fits = fits and -_LARGEST_NUMBER < value < _LARGEST_NUMBER
    if not fits or (kind is int and value != int(value)):
        large = type(value) in (int, float) and abs(value) >= _LARGEST_NUMBER
        wanted = _KINDS[kind] + (f" below {_LARGEST_NUMBER:g}" if large else "")
        raise ModelError(f"{source}: {key} must be {wanted}, got {quoted(value)}")
    return kind(value)


def output_ends(
    config: JsonObject,
    generation_config: JsonObject,
    end_tokens: Sequence[int],
    vocab_size: int,
    source: str,
) -> tuple[int, ...]:
    """Ids that end an output, of a family without a default of its own."""
    return _eos_token_ids(config, generation_config, end_tokens, None, vocab_size, source)


def _eos_token_ids(
    config: JsonObject,
    generation_config: JsonObject,
    end_tokens: Sequence[int],
    default: int | None,
    vocab_size: int,
    source: str,
) -> tuple[int, ...]:
    """Ids that end an output; generation_config.json wins, since chat models widen the list there.

    What the tokenizer calls the end is one too; the family's own default stands only where nobody says.
    """
    generated = _token_ids(generation_config, source.replace("config.json", "generation_config.json"))
    configured = _token_ids(config, source)
    if generated is not None:
        ids = generated
    elif "eos_token_id" in config or end_tokens:
        ids = configured or []
    else:
        ids = [] if default is None else [default]
    # Ids beyond the vocabulary are never drawn, and -1 is how some say that there is none.
    return tuple(number for number in dict.fromkeys([*ids, *end_tokens]) if 0 <= number < vocab_size)


def _token_ids(config: JsonObject, source: str) -> list[int] | None:
    """What a file says of the ends of an output; None if nothing."""
    value = config.get("eos_token_id")
    if value is None:
        return None
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in ids):
        raise ModelError(
            f"{source}: eos_token_id must be a token's id or a list of them, got {quoted(value)}"
        )
    if len(ids) > _MOST_ENDS:
        raise ModelError(f"{source}: eos_token_id lists {len(ids)} tokens, {_MOST_ENDS} at most")
    return ids


def native_dtype(config: JsonObject, source: str) -> str:
    """The data type that a configuration names; float32 if none."""
    value = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if value == "auto":
        return "float32"  # replaced by that of the weights
    if value not in DTYPES:
        raise ModelError(f"{source}: unsupported data type {value[:_SHOWN]}; supported: {', '.join(DTYPES)}")
    return value


def _rope_layers(config: JsonObject, model_type: str, layers: int, source: str) -> tuple[bool, ...]:
    if model_type != "smollm3":
        return (True,) * layers
    listed = config.get("no_rope_layers")
    if listed is None:
        interval = _number(config, "no_rope_layer_interval", 4, int, source)
        if interval < 1:
            raise ModelError(f"{source}: no_rope_layer_interval must be at least 1, got {interval}")
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    if not isinstance(listed, list) or not all(used in (0, 1) for used in listed):
        raise ModelError(f"{source}: no_rope_layers must be a list of 0 and 1, got {quoted(listed)}")
    # In spite of its name, the list has 1 where RoPE is used.
    return tuple(bool(used) for used in listed[:layers])


def _sliding_windows(
    config: JsonObject, model_type: str, family: _Family, rope_layers: tuple[bool, ...], source: str
) -> tuple[int | None, ...]:
    layers = len(rope_layers)
    window = None
    if model_type == "mistral" or (model_type != "llama" and config.get("use_sliding_window", False)):
        window = config.get("sliding_window", family.sliding_window)
    if window is not None:
        window = _number({"sliding_window": window}, "sliding_window", None, int, source)
        if window < 1:
            raise ModelError(f"{source}: sliding_window must be at least 1, got {window}")
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise ModelError(f"{source}: layer_types must be a list of names, got {quoted(kinds)}")
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ModelError(f"{source}: unsupported layer types {sorted(unknown)}")
        if window is None and "sliding_attention" in kinds:
            raise ModelError(
                f"{source}: layer_types names sliding_attention, but no sliding window is set "
                "(sliding_window, use_sliding_window)"
            )
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if window is None or model_type == "mistral":
        return (window,) * layers
    if model_type == "smollm3":
        return tuple(None if uses_rope else window for uses_rope in rope_layers)
    first = _number(config, "max_window_layers", 28, int, source)
    return tuple(window if layer >= first else None for layer in range(layers))


def _rope(config: JsonObject, default_theta: float, context_length: int, source: str) -> RopeSpec:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    scaling: JsonObject = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise ModelError(f"{source}: rope_scaling must be an object, got {quoted(scaling)}")
    named = scaling.get("rope_type") or scaling.get("type") or "default"
    kind = _ROPE_ALIASES.get(str(named), named)
    if kind not in ROPE_KINDS:
        raise ModelError(
            f"{source}: RoPE type {quoted(kind)} is not supported; "
            f"supported: {', '.join(ROPE_KINDS)}, dynamic"
        )
    refuse_unknown_rope_keys(scaling, str(named), source)
    for place in (scaling, config):
        if place.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise ModelError(f"{source}: partial_rotary_factor other than 1 is not supported")
    theta = _number(
        scaling, "rope_theta", _number(config, "rope_theta", default_theta, float, source), float, source
    )
    if kind == "default":
        return RopeSpec(theta=theta)
    # The configuration's own wins over that of the parameters, as in transformers.
    original = config.get("original_max_position_embeddings") or scaling.get(
        "original_max_position_embeddings"
    )
    original_context = _number(
        {"original_max_position_embeddings": original},
        "original_max_position_embeddings",
        context_length,
        int,
        source,
    )
    if original_context < 1:
        raise ModelError(f"{source}: original_max_position_embeddings must be at least 1")
    if scaling.get("factor") is None:
        raise ModelError(f"{source}: RoPE of type {kind} needs a factor")
    factor = _number(scaling, "factor", None, float, source)
    if factor <= 0:
        raise ModelError(f"{source}: RoPE's factor must be above 0, got {factor}")
    if kind == "linear":
        return RopeSpec(kind="linear", theta=theta, factor=factor)
    if kind == "llama3":
        low, high = (_number(scaling, f"{name}_freq_factor", None, float, source) for name in ("low", "high"))
        if not 0 < low < high:
            raise ModelError(f"{source}: RoPE's low_freq_factor must be above 0 and below high_freq_factor")
        return RopeSpec(
            kind="llama3",
            theta=theta,
            factor=factor,
            original_context=original_context,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_context=original_context,
        beta_fast=_number(scaling, "beta_fast", 32.0, float, source) or 32.0,
        beta_slow=_number(scaling, "beta_slow", 1.0, float, source) or 1.0,
        # An explicit null is no, as transformers reads it.
        truncate=_number(scaling, "truncate", "truncate" not in scaling, bool, source),
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
