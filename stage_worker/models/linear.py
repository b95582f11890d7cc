"""Matrix products with fixed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn import functional as F

from stage_worker.models.packed import Weight


class Linear(Protocol):
    """x [tokens, in] -> [tokens, out], in the weights' data type."""

    @property
    def nbytes(self) -> int:
        """Memory of weight and bias, bytes."""
        ...

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply; `out` may be used for the result."""
        ...

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight [len(ids), in], for an LM head that is the embedding too."""
        ...


LinearFactory = Callable[[Weight, torch.Tensor | None], Linear]
"""Makes a Linear of weight [out, in], numbers or codes, and bias [out] or None, which are its own then."""


class PlainLinear:
    """PyTorch's own product, on any device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    @property
    def nbytes(self) -> int:
        """Memory of weight and bias, bytes."""
        return self._weight.nbytes + (self._bias.nbytes if self._bias is not None else 0)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply; `out` may be used for the result."""
        return F.linear(x, self._weight, self._bias)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight [len(ids), in]."""
        return F.embedding(ids, self._weight)
