"""The reader of a GGUF header: a ModelSpec."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from gguf.constants import GGMLQuantizationType

from stage_worker.loading.gguf_header import GgufHeader, SkippedArray
from stage_worker.models.spec import MOST_LAYERS, SUPPORTED_ARCHITECTURES, ModelSpec, RopeSpec
from stage_worker.transformers_code.opening import examined
from tidepipe_common.errors import ModelError

# Mistral's converter writes it as llama, which it equals but for the sliding window.
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")
MIXTURES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
"""Mixtures of experts that the transformers library's code computes: its name of each."""
_MIXTURE_KEYS = frozenset({"expert_feed_forward_length", "expert_shared_feed_forward_length"})
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_SMOLLM3_NO_ROPE_INTERVAL = 4  # fixed in llama.cpp too: the file does not carry it


_KNOWN_KEYS = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.causal",
        "expert_count",
        "expert_used_count",
        "vocab_size",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        # How Meta's own files were laid out; the tensors here are in llama.cpp's order all the same.
        "tensor_data_layout",
    }
)
"""Of the architecture's own keys: what is computed as they say."""

_PLAIN_DTYPES: Mapping[GGMLQuantizationType, str] = {
    GGMLQuantizationType.F32: "float32",
    GGMLQuantizationType.F16: "float16",
    GGMLQuantizationType.BF16: "bfloat16",
}

_T = TypeVar("_T", int, float)


def from_gguf(header: GgufHeader, *, rope_divisors: tuple[float, ...] = ()) -> ModelSpec:
    """Make the spec of a GGUF file.

    rope_divisors: the values of its tensor rope_freqs.weight, if it has one.
    Raises ModelError for what the decoder cannot run.
    """
    source = str(header.path)
    architecture = str(header.metadata.get("general.architecture", "(none)"))
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{source}: architecture {architecture!r} is not supported in GGUF files; supported: "
            f"{', '.join((*SUPPORTED_ARCHITECTURES, *MIXTURES))}; of others use the model's Hugging Face "
            "folder (plain, AWQ or GPTQ; `tidepipe models` lists what runs)"
        )
    if _EMBEDDING not in header.tensors:
        raise ModelError(f"{source}: tensor {_EMBEDDING} is missing")
    keys = Keys(header, architecture)
    if keys.optional("expert_count", 0, int):
        raise ModelError(
            f"{source}: mixture-of-experts models of {architecture} are not read from GGUF; use the "
            "model's Hugging Face folder, plain, AWQ or GPTQ"
        )
    keys.refuse_unknown()

    layers = keys.required("block_count", int)
    if not 1 <= layers <= MOST_LAYERS:
        raise ModelError(f"{source}: {architecture}.block_count must be 1 to {MOST_LAYERS}, got {layers}")
    hidden = keys.required("embedding_length", int)
    heads = keys.required("attention.head_count", int)
    if heads < 1:
        raise ModelError(f"{source}: {architecture}.attention.head_count must be at least 1, got {heads}")
    head_dim = keys.optional("attention.key_length", hidden // heads, int)
    if keys.optional("attention.value_length", head_dim, int) != head_dim:
        raise ModelError(f"{source}: keys and values of different sizes are not supported")
    if keys.optional("rope.dimension_count", head_dim, int) != head_dim:
        raise ModelError(f"{source}: RoPE over a part of the head is not supported")
    context_length = keys.required("context_length", int)
    window = keys.optional("attention.sliding_window", 0, int) if architecture == "llama" else 0
    interval = _SMOLLM3_NO_ROPE_INTERVAL if architecture == "smollm3" else layers + 1
    spec = ModelSpec(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=keys.optional("attention.head_count_kv", heads, int),
        head_dim=head_dim,
        intermediate=keys.required("feed_forward_length", int),
        vocab_size=header.tensors[_EMBEDDING].shape[0],
        context_length=context_length,
        eos_token_ids=eos_token_ids(header, header.tensors[_EMBEDDING].shape[0]),
        tied_embeddings=_HEAD not in header.tensors,
        rms_eps=keys.required("attention.layer_norm_rms_epsilon", float),
        rope=_rope(keys, context_length, rope_divisors),
        qkv_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in header.tensors,
        o_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
        qk_norm=architecture == "qwen3",
        sliding_windows=(window or None,) * layers,
        rope_layers=tuple((layer + 1) % interval != 0 for layer in range(layers)),
        native_dtype=plain_dtype(header),
    )
    spec.check(source)
    return spec


def is_mixture(header: GgufHeader) -> bool:
    """Whether the file's model is one of MIXTURES."""
    return header.metadata.get("general.architecture") in MIXTURES


def mixture_spec(header: GgufHeader) -> ModelSpec:
    """The spec of a file's model; ModelError for what cannot be run, with the reason."""
    spec = examined(mixture_config(header), str(header.path))
    return dataclasses.replace(
        spec,
        eos_token_ids=eos_token_ids(header, spec.vocab_size),
        native_dtype=plain_dtype(header),
    )


def mixture_config(header: GgufHeader) -> dict[str, Any]:
    """What config.json of the same model would say."""
    source = str(header.path)
    architecture = str(header.metadata["general.architecture"])
    if _EMBEDDING not in header.tensors:
        raise ModelError(f"{source}: tensor {_EMBEDDING} is missing")
    keys = Keys(header, architecture)
    keys.refuse_unknown(_MIXTURE_KEYS)
    if (scaling := keys.text("rope.scaling.type", "none")) != "none":
        raise ModelError(
            f"{source}: RoPE scaling {scaling!r} of {architecture} is not read from GGUF; use the model's "
            "Hugging Face folder"
        )
    hidden, heads = keys.required("embedding_length", int), keys.required("attention.head_count", int)
    head_dim = keys.optional("attention.key_length", hidden // max(1, heads), int)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.optional(key, head_dim, int) != head_dim:
            raise ModelError(f"{source}: metadata {architecture}.{key} is not {head_dim}, as that of keys is")
    theta = keys.optional("rope.freq_base", 10_000.0, float)
    config = {
        "model_type": MIXTURES[architecture],
        "num_hidden_layers": keys.required("block_count", int),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.optional("attention.head_count_kv", heads, int),
        "intermediate_size": keys.required("feed_forward_length", int),
        "moe_intermediate_size": keys.required("expert_feed_forward_length", int),
        "num_experts": keys.required("expert_count", int),
        "num_experts_per_tok": keys.required("expert_used_count", int),
        "max_position_embeddings": keys.required("context_length", int),
        "rms_norm_eps": keys.required("attention.layer_norm_rms_epsilon", float),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "vocab_size": header.tensors[_EMBEDDING].shape[0],
        "tie_word_embeddings": _HEAD not in header.tensors,
        # What llama.cpp's own code has fixed for these.
        "norm_topk_prob": architecture == "qwen3moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    if architecture == "qwen3moe":
        return {**config, "head_dim": head_dim}
    if head_dim * heads != hidden:
        raise ModelError(f"{source}: {heads} heads of {head_dim} are not the {hidden} values of a token")
    return {
        **config,
        "shared_expert_intermediate_size": keys.required("expert_shared_feed_forward_length", int),
    }


class Keys:
    """Numbers of the architecture's own keys, `llama.block_count` and so on."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self._metadata = header.metadata
        self._prefix = architecture
        self.source = str(header.path)

    def required(self, key: str, kind: type[_T]) -> _T:
        full = f"{self._prefix}.{key}"
        value = self._metadata.get(full)
        if value is None:
            raise ModelError(f"{self.source}: metadata {full} is missing")
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            # Some converters write one number per layer; only equal ones make a uniform stack.
            value = value[0]
        if (
            isinstance(value, (bool, str, list, SkippedArray))
            or not math.isfinite(value)
            or value != kind(value)
        ):
            raise ModelError(f"{self.source}: metadata {full} must be one number, got {value!r}")
        return kind(value)

    def optional(self, key: str, default: _T, kind: type[_T]) -> _T:
        return self.required(key, kind) if f"{self._prefix}.{key}" in self._metadata else default

    def refuse_unknown(self, more: frozenset[str] = frozenset()) -> None:
        """ModelError for keys that may change the computation in a way nobody here knows.

        more: keys that are known. Keys without a value (false, zero, empty) say nothing and may be there.
        """
        known = _KNOWN_KEYS | more | ({"attention.sliding_window"} if self._prefix == "llama" else set())
        unknown = [
            key
            for key, value in self._metadata.items()
            if key.startswith(f"{self._prefix}.")
            and key.removeprefix(f"{self._prefix}.") not in known
            and value
        ]
        if unknown:
            raise ModelError(
                f"{self.source}: metadata {', '.join(sorted(unknown))} is not known for {self._prefix}, and "
                "may change what the model computes; use the Hugging Face folder "
                "(docs/reference/checkpoints.md)"
            )

    def text(self, key: str, default: str) -> str:
        return str(self._metadata.get(f"{self._prefix}.{key}", default))


def _rope(keys: Keys, context_length: int, divisors: tuple[float, ...]) -> RopeSpec:
    theta = keys.optional("rope.freq_base", 10_000.0, float)
    # As llama.cpp reads them: the old name of the factor, 0 for none, and linear if no type is named.
    factor = (
        keys.optional("rope.scaling.factor", keys.optional("rope.scale_linear", 1.0, float), float) or 1.0
    )
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise ModelError(
            f"{keys.source}: RoPE scaling {kind!r} is not supported; supported: none, linear, yarn"
        )
    if factor < 0:
        raise ModelError(f"{keys.source}: RoPE's factor must be above 0, got {factor}")
    attention_factor = keys.optional("rope.scaling.attn_factor", 1.0, float)
    if kind != "yarn" and attention_factor != 1.0:
        raise ModelError(f"{keys.source}: rope.scaling.attn_factor is supported with yarn only, not {kind}")
    if kind == "none" or factor == attention_factor == 1.0:
        return RopeSpec(theta=theta, frequency_divisors=divisors)
    if kind == "linear":
        return RopeSpec(kind="linear", theta=theta, factor=factor, frequency_divisors=divisors)
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_context=keys.optional("rope.scaling.original_context_length", context_length, int),
        beta_fast=keys.optional("rope.scaling.yarn_beta_fast", 32.0, float),
        beta_slow=keys.optional("rope.scaling.yarn_beta_slow", 1.0, float),
        attention_factor=attention_factor * (0.1 * math.log(max(factor, 1.0)) + 1.0),
        frequency_divisors=divisors,
    )


def eos_token_ids(header: GgufHeader, vocab_size: int) -> tuple[int, ...]:
    """The tokens that end an output."""
    values = (header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    ids = (value for value in values if isinstance(value, int))
    return tuple(dict.fromkeys(value for value in ids if 0 <= value < vocab_size))


def plain_dtype(header: GgufHeader) -> str:
    """The plain type of the first layer's query weights (else bfloat16): norms are float32 in any file."""
    query = header.tensors.get("blk.0.attn_q.weight")
    return _PLAIN_DTYPES.get(query.kind, "bfloat16") if query else "bfloat16"
