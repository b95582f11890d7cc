"""Opens a GGUF file: plain weights, and block-quantized ones, which are kept as codes where they can be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType

from stage_worker.loading.checkpoint import Checkpoint, RawRows, RowDecoder, StoredTensor, StoredWeight
from stage_worker.loading.gguf_blocks import PACKED_KINDS, BlockReader
from stage_worker.loading.gguf_config import from_gguf
from stage_worker.loading.gguf_header import GgufHeader, GgufTensor
from stage_worker.loading.stage_weights import check_weights
from stage_worker.models.packed import PackedWeight
from tidepipe_common.errors import ModelError
from tidepipe_common.gguf_names import hugging_face_name

_ROPE_DIVISORS = "rope_freqs.weight"
# Read by other means.
_HARMLESS = (_ROPE_DIVISORS,)

# Converters reorder query and key rows for these, whose RoPE turns neighbouring dimensions in llama.cpp.
_INTERLEAVED = ("llama", "smollm3")

_PLAIN: Mapping[GGMLQuantizationType, torch.dtype] = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


def open_gguf(header: GgufHeader) -> Checkpoint:
    """The checkpoint of a dense model; raises ModelError for an architecture that cannot be run."""
    divisors = header.tensors.get(_ROPE_DIVISORS)
    if divisors is None:
        spec = from_gguf(header)
    else:
        name = divisors.name
        without = Checkpoint(header.path, from_gguf(header), {name: stored_tensor(divisors)})
        spec = from_gguf(header, rope_divisors=without.read_vector(name))
    tensors: dict[str, StoredTensor] = {}
    packed: dict[str, StoredWeight] = {}
    for tensor in header.tensors.values():
        hf_name = hugging_face_name(tensor.name)
        if hf_name is not None:
            reordered = spec.architecture in _INTERLEAVED and ".self_attn.q_proj." in hf_name
            reordered |= spec.architecture in _INTERLEAVED and ".self_attn.k_proj." in hf_name
            stored = stored_tensor(tensor, spec.head_dim if reordered else 0)
            tensors[hf_name] = stored
            if (codes := stored_weight(hf_name, stored, tensor.kind)) is not None:
                packed[hf_name] = codes
    checkpoint = Checkpoint(header.path, spec, tensors, packed)
    _refuse_unused(checkpoint, header)
    return checkpoint


def stored_weight(name: str, stored: StoredTensor, kind: GGMLQuantizationType) -> StoredWeight | None:
    """A matrix that is kept as codes, under a name; None for what becomes numbers."""
    make = PACKED_KINDS.get(kind)
    if make is None or len(stored.shape) != 2:
        return None
    outputs, inputs = stored.shape
    read = partial(_read, make)
    return StoredWeight(
        {"weight": stored}, (outputs, inputs), frozenset((name,)), read, stored.interleaved_head_dim
    )


def _read(make: BlockReader, parts: Mapping[str, StoredTensor]) -> PackedWeight:
    return make(parts["weight"].raw())


def _refuse_unused(checkpoint: Checkpoint, header: GgufHeader) -> None:
    """ModelError for tensors that the decoder would leave out, unlike llama.cpp, whose file it is."""
    used = check_weights(checkpoint)
    unused = [
        name for name in header.tensors if name not in _HARMLESS and hugging_face_name(name) not in used
    ]
    if unused:
        raise ModelError(
            f"{checkpoint.path}: tensors that are not known here, and part of what the model computes: "
            f"{', '.join(sorted(unused)[:5])}; use the model's Hugging Face folder "
            "(docs/reference/checkpoints.md)"
        )


def stored_tensor(tensor: GgufTensor, interleaved_head_dim: int = 0) -> StoredTensor:
    """Where it lies, and how it is read."""
    return StoredTensor(
        file=tensor.file,
        name=tensor.name,
        shape=tensor.shape,
        kind=tensor.kind.name,
        offset=tensor.offset,
        nbytes=tensor.nbytes,
        decode=_decoder(tensor.kind),
        interleaved_head_dim=interleaved_head_dim,
    )


def _decoder(kind: GGMLQuantizationType) -> RowDecoder:
    plain = _PLAIN.get(kind)

    def decode(raw: RawRows) -> torch.Tensor:
        if plain is not None:
            return torch.from_numpy(raw).view(plain)
        return torch.from_numpy(np.ascontiguousarray(quants.dequantize(raw, kind)))

    return decode
