"""The terms of a step's cost beside its matrix products: attention, rows, the LM head, a fixed part."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.latency.hardware import Hardware
from tidepipe_common.latency.linear import WEIGHT_BYTES, LinearCost
from tidepipe_common.types.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class StepTerms:
    """Seconds, of the whole model on one device.

    kv_token_s: attention per KV entry read. pair_s: attention per query-key pair of a prompt.
    row_s: per sequence in the step. fixed_s: per step *and stage*, however small either is.
    head: logits and token choice by the number of sampled rows; None if the linear cost has it in.
    """

    kv_token_s: float
    pair_s: float
    row_s: float = 0.0
    fixed_s: float = 0.0
    head: LinearCost | None = None


def modelled_terms(shape: ModelShape, device: Hardware) -> StepTerms:
    """Attention by the data sheet.

    Decode streams the KV cache; prompts compute 4 x heads x head_dim operations per pair and layer.
    """
    return StepTerms(
        kv_token_s=shape.kv_bytes_per_token(shape.layers, WEIGHT_BYTES) / device.bytes_per_s,
        pair_s=4 * shape.layers * shape.heads * shape.head_dim / device.attention_flops,
    )
