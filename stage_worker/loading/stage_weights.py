"""The loading of one stage's share of a checkpoint, tensor by tensor, straight into its fused weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.models.joined_linear import JoinedLinear
from stage_worker.models.linear import Linear, LinearFactory, PlainLinear
from stage_worker.models.packed import PackedWeight, Weight, stacked
from stage_worker.models.packed_linear import PackedLinear
from stage_worker.models.weights import LayerWeights, StageWeights
from tidepipe_common.memory import return_freed

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class StageSlice:
    """Layers begin .. end - 1. first: also the embedding; last: also the final norm and the LM head."""

    begin: int
    end: int
    first: bool
    last: bool


def load_stage(
    checkpoint: Checkpoint,
    part: StageSlice,
    dtype: torch.dtype,
    device: torch.device,
    make_linear: LinearFactory,
    make_head: LinearFactory,
    share_ends: bool = True,
) -> StageWeights:
    """Read what the stage needs and nothing else; raises ModelError for missing or misshapen tensors.

    make_linear, make_head: called for each product (the LM head) as soon as its weights are there, so that
    a copy it makes replaces them before the next ones are read. share_ends: a tied LM head on the only stage
    is the embedding too.
    """
    loader = _Loader(checkpoint, dtype, device, make_linear)
    tied = checkpoint.spec.tied_embeddings
    embedding: Linear | None = None
    head: Linear | None = None
    final_norm: torch.Tensor | None = None
    # The largest first, while there is little else: what reading and packing them takes beside is free again
    # when the layers come.
    if part.last:
        head = make_head(loader.embedding(EMBEDDING if tied else HEAD), None)
        final_norm = loader.vector(FINAL_NORM, checkpoint.spec.hidden)
    if part.first:
        if head is not None and tied and share_ends:
            embedding = head
        else:
            embedding = plain_linear(loader.embedding(EMBEDDING), None, dtype)
    layers = []
    for index in range(part.begin, part.end):
        return_freed()  # else what each layer leaves adds up to a quarter of the weights
        layers.append(loader.layer(index))
    return StageWeights(tuple(layers), embedding, final_norm, head)


def check_weights(checkpoint: Checkpoint) -> frozenset[str]:
    """The names of all tensors of all stages; ModelError unless they are there, in shape and readable.

    Reads no values. A damaged model is refused when its worker starts, not when a pipeline is made of it.
    """
    loader = _Loader(checkpoint, torch.float32, torch.device("meta"), lambda weight, bias: _NOTHING)
    loader.embedding(EMBEDDING)
    for index in range(checkpoint.spec.layers):
        loader.layer(index)
    loader.vector(FINAL_NORM, checkpoint.spec.hidden)
    if not checkpoint.spec.tied_embeddings:
        loader.embedding(HEAD)
    return frozenset(loader.names)


def plain_linear(weight: Weight, bias: torch.Tensor | None, dtype: torch.dtype) -> Linear:
    """PyTorch's own product, of numbers or of codes."""
    if isinstance(weight, PackedWeight):
        return PackedLinear(weight, bias, dtype)
    return PlainLinear(weight, bias)


_NOTHING = PlainLinear(torch.empty(0, 0, device="meta"), None)


class _Loader:
    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, make_linear: LinearFactory
    ) -> None:
        self._checkpoint = checkpoint
        self._spec = checkpoint.spec
        self._dtype = dtype
        self._device = device
        self._make_linear = make_linear
        self.names: set[str] = set()

    def layer(self, index: int) -> LayerWeights:
        spec = self._spec
        prefix = f"model.layers.{index}."
        attention = f"{prefix}self_attn."
        mlp = f"{prefix}mlp."
        return LayerWeights(
            input_norm=self.vector(f"{prefix}input_layernorm.weight", spec.hidden),
            qkv=self._fused(
                [f"{attention}q_proj", f"{attention}k_proj", f"{attention}v_proj"],
                [spec.query_size, spec.kv_size, spec.kv_size],
                spec.hidden,
                spec.qkv_bias,
            ),
            q_norm=self.vector(f"{attention}q_norm.weight", spec.head_dim) if spec.qk_norm else None,
            k_norm=self.vector(f"{attention}k_norm.weight", spec.head_dim) if spec.qk_norm else None,
            output=self._fused([f"{attention}o_proj"], [spec.hidden], spec.query_size, spec.o_bias),
            mlp_norm=self.vector(f"{prefix}post_attention_layernorm.weight", spec.hidden),
            gate_up=self._fused(
                [f"{mlp}gate_proj", f"{mlp}up_proj"],
                [spec.intermediate, spec.intermediate],
                spec.hidden,
                spec.mlp_bias,
            ),
            down=self._fused([f"{mlp}down_proj"], [spec.hidden], spec.intermediate, spec.mlp_bias),
        )

    def vector(self, name: str, length: int) -> torch.Tensor:
        return self._read(name, self._empty(length))

    def embedding(self, name: str) -> Weight:
        return self._weight(name, self._spec.vocab_size, self._spec.hidden)

    def _weight(self, name: str, outputs: int, inputs: int) -> Weight:
        """A weight as it is stored: numbers, or codes."""
        stored = self._checkpoint.packed_weight(name, (outputs, inputs))
        if stored is None:
            return self._read(name, self._empty(outputs, inputs))
        self.names |= stored.names
        if self._device.type == "meta":
            return self._empty(outputs, inputs)
        return stored.read().to(self._device)

    def _fused(self, names: Sequence[str], sizes: Sequence[int], inputs: int, has_bias: bool) -> Linear:
        """One product of several weights [size, inputs], stacked."""
        bias = self._empty(sum(sizes)) if has_bias else None
        ends = list(itertools.accumulate(sizes))
        rows = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        for name, part in zip(names, rows, strict=True):
            if bias is not None:
                self._read(f"{name}.bias", bias[part])
        if self._checkpoint.packed.keys().isdisjoint(f"{name}.weight" for name in names):
            weight = self._empty(ends[-1], inputs)
            for name, part in zip(names, rows, strict=True):
                self._read(f"{name}.weight", weight[part])
            return self._make_linear(weight, bias)
        weights = [
            self._weight(f"{name}.weight", size, inputs) for name, size in zip(names, sizes, strict=True)
        ]
        packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
        whole = stacked(packed) if len(packed) == len(weights) else None
        if whole is not None:
            return self._make_linear(whole, bias)
        parts = [
            self._make_linear(weight, bias[part] if bias is not None else None)
            for weight, part in zip(weights, rows, strict=True)
        ]
        return JoinedLinear(parts, sizes)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=self._dtype, device=self._device)

    def _read(self, name: str, target: torch.Tensor) -> torch.Tensor:
        self._checkpoint.read_into(name, target)
        self.names.add(name)
        return target
