"""Matrix products with fixed weights: the plain one, and one with weights reordered once for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn import functional as F


class Linear(Protocol):
    """x [tokens, in] -> [tokens, out], in the weights' data type."""

    @property
    def nbytes(self) -> int:
        """Memory of weight and bias, bytes."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        ...


LinearFactory = Callable[[torch.Tensor, torch.Tensor | None], Linear]
"""Makes a Linear of weight [out, in] and bias [out] or None; the tensors are the Linear's from then on."""


class PlainLinear:
    """PyTorch's own product, on any device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    @property
    def nbytes(self) -> int:
        """Memory of weight and bias, bytes."""
        return self._weight.nbytes + (self._bias.nbytes if self._bias is not None else 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return F.linear(x, self._weight, self._bias)
