"""Products with weights of few bits by PyTorch, on any device: unpacked a piece at a time."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from stage_worker.models.packed import PackedWeight

_PIECE = 1 << 24
"""Numbers that are unpacked at once: few pieces, and none that memory is short of."""


class PackedLinear:
    """Keeps codes as they are; PyTorch multiplies with what a piece of them unpacks to."""

    def __init__(self, weight: PackedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._weight = weight
        self._bias = bias
        self._dtype = dtype

    @property
    def nbytes(self) -> int:
        """Memory of codes, scales and bias, bytes."""
        return self._weight.nbytes + (self._bias.nbytes if self._bias is not None else 0)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply; `out` may be used for the result."""
        outputs, inputs = self._weight.shape
        step = max(1, _PIECE // inputs)
        if step >= outputs:
            return F.linear(x, self._weight.dequantized(self._dtype), self._bias)
        if out is None:
            out = x.new_empty(x.shape[0], outputs)
        for row in range(0, outputs, step):
            part = slice(row, row + step)
            bias = self._bias[part] if self._bias is not None else None
            out[:, part] = F.linear(x, self._weight.taken(part).dequantized(self._dtype), bias)
        return out

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight [len(ids), in]."""
        return self._weight.taken(ids).dequantized(self._dtype)
