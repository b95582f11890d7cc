"""The weights of one stage, as the decoder uses them: fused where that makes fewer, larger products."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stage_worker.models.joined_linear import parts_of
from stage_worker.models.linear import Linear
from stage_worker.models.packed_linear import PackedLinear


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer.

    qkv: hidden -> query heads, key heads, value heads, one behind the other.
    gate_up: hidden -> gate, up. Norm weights are vectors in the pipeline's data type.
    """

    input_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear

    @property
    def products(self) -> tuple[Linear, ...]:
        """In the order in which they are computed."""
        return self.qkv, self.output, self.gate_up, self.down

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        norms = (self.input_norm, self.q_norm, self.k_norm, self.mlp_norm)
        vectors = sum(norm.nbytes for norm in norms if norm is not None)
        return vectors + sum(product.nbytes for product in self.products)


@dataclass(frozen=True, slots=True)
class StageWeights:
    """Layers begin .. end - 1 of the model, and what only the first or the last stage has.

    embedding: first stage. final_norm, head: last stage. The two ends of a tied model on one stage share
    their weights: embedding is head.
    """

    layers: tuple[LayerWeights, ...]
    embedding: Linear | None = None
    final_norm: torch.Tensor | None = None
    head: Linear | None = None

    @property
    def by_pytorch(self) -> bool:
        """True if PyTorch unpacks weights of some product in every step."""
        products = [product for layer in self.layers for product in layer.products]
        products += [self.head] if self.head is not None else []
        return any(isinstance(part, PackedLinear) for product in products for part in parts_of(product))

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        total = sum(layer.nbytes for layer in self.layers)
        total += self.embedding.nbytes if self.embedding is not None else 0
        total += self.final_norm.nbytes if self.final_norm is not None else 0
        if self.head is not None and self.head is not self.embedding:
            total += self.head.nbytes
        return total
