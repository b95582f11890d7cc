"""Adapters (LoRA) beside a stage's products: to x W^T comes x A^T B^T, for the rows of that adapter only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from stage_worker.models.linear import Linear

Segment = tuple[int, int, int]
"""(number of the adapter, first token, one past the last)."""


@dataclass(slots=True)
class StepAdapters:
    """Whose rows the present step has. segments: stretches of tokens of one adapter; none of the base's."""

    segments: Sequence[Segment] = ()


@dataclass(frozen=True, slots=True)
class UpPart:
    """B of one of the products that a fused one is made of.

    begin: its first output in the fused one. inner: its first value between A and B. weight: [rank, out],
    with the scale in it.
    """

    begin: int
    inner: int
    weight: torch.Tensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """One adapter of one product, which may be fused of several. down: their A, stacked: [ranks, in]."""

    down: torch.Tensor
    parts: tuple[UpPart, ...]

    @staticmethod
    def of(pieces: Sequence[tuple[int, torch.Tensor, torch.Tensor]]) -> LowRank:
        """pieces: first output in the fused product, A [rank, in], B [out, rank] with the scale in it."""
        parts, inner = [], 0
        for begin, down, up in pieces:
            parts.append(UpPart(begin, inner, up.t().contiguous()))
            inner += len(down)
        downs = [down for _, down, _ in pieces]
        return LowRank(downs[0] if len(downs) == 1 else torch.cat(downs), tuple(parts))

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        return self.down.nbytes + sum(part.weight.nbytes for part in self.parts)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y [tokens, out] what it makes of x [tokens, in]; rounded to y's data type once."""
        inner = F.linear(x.to(self.down.dtype), self.down)
        for part in self.parts:
            rank, outputs = part.weight.shape
            target = y[:, part.begin : part.begin + outputs]
            values = inner[:, part.inner : part.inner + rank]
            if target.dtype == values.dtype:
                target.addmm_(values, part.weight)
            else:
                target.add_(values @ part.weight)


PerAdapter = tuple[LowRank | None, ...]
"""Of one product, by the adapters' numbers less one; None where one leaves it as it is."""


@dataclass(frozen=True, slots=True)
class LayerAdapters:
    """Of the products of one decoder layer (LayerWeights)."""

    qkv: PerAdapter
    output: PerAdapter
    gate_up: PerAdapter
    down: PerAdapter

    @property
    def products(self) -> tuple[PerAdapter, ...]:
        """In the order in which a layer computes them."""
        return self.qkv, self.output, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class StageAdapters:
    """All adapters, as far as they concern the layers of one stage. numbers: from 1, by fingerprint."""

    numbers: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[LayerAdapters, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        each = (low for layer in self.layers for product in layer.products for low in product)
        return sum(low.nbytes for low in each if low is not None)


NO_ADAPTERS = StageAdapters()


class AdaptedLinear:
    """A product with adapters beside it, whatever computes the product itself; implements `Linear`."""

    def __init__(self, base: Linear, adapters: PerAdapter, step: StepAdapters) -> None:
        self._base = base
        self._adapters = adapters
        self._step = step

    @staticmethod
    def around(base: Linear, adapters: PerAdapter, step: StepAdapters) -> Linear:
        """The product itself if no adapter changes it."""
        return AdaptedLinear(base, adapters, step) if any(adapters) else base

    @property
    def nbytes(self) -> int:
        """Memory of the product itself; adapters are counted apart."""
        return self._base.nbytes

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply; `out` may be used for the result."""
        y = self._base(x, out)
        for number, begin, end in self._step.segments:
            if (low := self._adapters[number - 1]) is not None:
                low.add(x[begin:end], y[begin:end])
        return y

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the product's weight."""
        return self._base.rows(ids)
