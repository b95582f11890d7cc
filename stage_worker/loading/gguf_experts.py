"""Mixtures of experts in GGUF files, read as checkpoints of what the transformers library's code computes.

llama.cpp has the experts of a layer in one tensor; here each is a weight of its own, as in Hugging Face's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from stage_worker.loading.checkpoint import Checkpoint, StoredTensor, StoredWeight
from stage_worker.loading.gguf_config import mixture_config, mixture_spec
from stage_worker.loading.gguf_file import stored_tensor, stored_weight
from stage_worker.loading.gguf_header import GgufHeader, GgufTensor
from tidepipe_common.errors import ModelError
from tidepipe_common.gguf_names import LAYER_NAMES, LAYER_TENSOR, TOP_NAMES

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
    config = mixture_config(header)
    tensors: dict[str, StoredTensor] = {}
    packed: dict[str, StoredWeight] = {}
    for tensor in header.tensors.values():
        for name, stored in _parts(header, tensor, config["num_experts"]):
            tensors[name] = stored
            if (codes := stored_weight(name, stored, tensor.kind)) is not None:
                packed[name] = codes
    return Checkpoint(header.path, mixture_spec(header), tensors, packed, library_config=config)


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
