"""Mixtures of experts in GGUF files, read as checkpoints of what the transformers library's code computes.

llama.cpp has the experts of a layer in one tensor; here each is a weight of its own, as in Hugging Face's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from stage_worker.loading.checkpoint import Checkpoint, StoredTensor, StoredWeight
from stage_worker.loading.gguf_config import MIXTURES, Keys, eos_token_ids, plain_dtype
from stage_worker.loading.gguf_file import LAYER_NAMES, LAYER_TENSOR, TOP_NAMES, stored_tensor, stored_weight
from stage_worker.loading.gguf_header import GgufHeader, GgufTensor
from stage_worker.models.spec import ModelSpec
from tidepipe_common.errors import ModelError

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_MORE_KEYS = frozenset({"expert_feed_forward_length", "expert_shared_feed_forward_length"})
_NAMES: Mapping[str, str] = {
    **{ours: theirs for ours, theirs in LAYER_NAMES.items() if not theirs.startswith("mlp.")},
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_OF_EXPERTS: Mapping[str, str] = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
}


def open_mixture(header: GgufHeader) -> Checkpoint:
    """The checkpoint; ModelError for what cannot be computed as llama.cpp would."""
    config = _config(header)
    tensors: dict[str, StoredTensor] = {}
    packed: dict[str, StoredWeight] = {}
    for tensor in header.tensors.values():
        for name, stored in _parts(header, tensor, config["num_experts"]):
            tensors[name] = stored
            if (codes := stored_weight(name, stored, tensor.kind)) is not None:
                packed[name] = codes
    return Checkpoint(header.path, mixture_spec(header), tensors, packed, library_config=config)


def mixture_spec(header: GgufHeader) -> ModelSpec:
    """The spec of a file's model; ModelError for what cannot be run, with the reason."""
    from stage_worker.transformers_code.opening import examined

    spec = examined(_config(header), str(header.path))
    return dataclasses.replace(
        spec,
        eos_token_ids=eos_token_ids(header, spec.vocab_size),
        native_dtype=plain_dtype(header),
    )


def _config(header: GgufHeader) -> dict[str, Any]:
    """What config.json of the same model would say."""
    source = str(header.path)
    architecture = str(header.metadata["general.architecture"])
    if _EMBEDDING not in header.tensors:
        raise ModelError(f"{source}: tensor {_EMBEDDING} is missing")
    keys = Keys(header, architecture)
    keys.refuse_unknown(_MORE_KEYS)
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


def _parts(header: GgufHeader, tensor: GgufTensor, experts: int) -> Iterator[tuple[str, StoredTensor]]:
    """Hugging Face's names of a tensor, or of its experts, and where their values lie."""
    if tensor.name in TOP_NAMES:
        yield TOP_NAMES[tensor.name], stored_tensor(tensor)
        return
    match = LAYER_TENSOR.fullmatch(tensor.name)
    prefix = f"model.layers.{match[1]}." if match else ""
    if match is not None and match[2] in _OF_EXPERTS and match[3] == "weight":
        if len(tensor.shape) != 3 or tensor.shape[0] != experts:
            raise ModelError(
                f"{header.path}: tensor {tensor.name} has shape {list(tensor.shape)}, not one matrix for "
                f"each of {experts} experts"
            )
        whole, each = stored_tensor(tensor), tensor.nbytes // experts
        for number in range(experts):
            yield (
                f"{prefix}mlp.experts.{number}.{_OF_EXPERTS[match[2]]}.weight",
                dataclasses.replace(
                    whole, shape=tensor.shape[1:], offset=tensor.offset + number * each, nbytes=each
                ),
            )
        return
    if match is None or match[2] not in _NAMES:
        raise ModelError(
            f"{header.path}: tensor {tensor.name} is not known here, and part of what the model computes; "
            "use the model's Hugging Face folder (docs/reference/checkpoints.md)"
        )
    stored = stored_tensor(tensor)
    if match[2] == "ffn_gate_inp_shexp":  # a row, which llama.cpp has as a vector
        stored = dataclasses.replace(stored, shape=(1, stored.shape[-1]))
    yield f"{prefix}{_NAMES[match[2]]}.{match[3]}", stored
