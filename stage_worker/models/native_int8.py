"""Products in int8 by the C kernels: weights rounded once per output, activations per token as they come."""

from __future__ import annotations

from ctypes import byref

import torch
from torch.nn import functional as F

from stage_worker.models.native.library import NativeKernels
from stage_worker.models.native.structures import PANEL, Bytes, Rows
from stage_worker.models.native_ops import NativeProduct, panels_of

_LARGEST = 127
_MOST_INPUTS = 65_536
"""Beyond it a sum of products of bytes might not fit 32 bits."""
_WORD = 4
"""Inputs that one step of the product takes."""
_PIECE = 1 << 20
"""Numbers that are rounded at once: in floats they take several times the memory of a weight."""


class ByteRows:
    """Memory for rows rounded to int8; grows, and is used again."""

    def __init__(self) -> None:
        self.structure = Bytes()
        self._tensors: tuple[torch.Tensor, ...] = ()
        self._rows = self._size = 0

    def reserve(self, rows: int, columns: int) -> Bytes:
        """Make sure that so many rows fit."""
        if rows > self._rows or rows * columns > self._size:
            self._rows, self._size = max(rows, self._rows), max(rows * columns, self._size)
            values = torch.empty(self._size, dtype=torch.int8)
            scales, shifts = torch.empty(self._rows), torch.empty(self._rows, dtype=torch.int32)
            self._tensors = (values, scales, shifts)
            self.structure = Bytes(values.data_ptr(), scales.data_ptr(), shifts.data_ptr())
        return self.structure


class Int8Linear(NativeProduct):
    """Dynamic W8A8: weight rows and tokens each have one scale, sums are exact integers.

    Each row of x is rounded by itself, so that a row's result does not depend on the other rows.
    """

    def __init__(
        self,
        kernels: NativeKernels,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        float_out: bool = False,
    ) -> None:
        self._weight, self._scales = _packed(weight, kernels)
        self._rows = ByteRows()
        stored = {"weight": self._weight.data_ptr(), "scales": self._scales.data_ptr()}
        super().__init__(kernels, weight.shape, bias, float_out, **stored)

    @staticmethod
    def fits(weight: torch.Tensor) -> bool:
        """True if the kernel can multiply with this weight [outputs, inputs]."""
        return weight.shape[1] % _WORD == 0 and weight.shape[1] <= _MOST_INPUTS

    @property
    def nbytes(self) -> int:
        """Memory of weight, scales and bias, bytes."""
        bias = self._bias.nbytes if self._bias is not None else 0
        return self._weight.nbytes + self._scales.nbytes + bias

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Round and multiply; `out` may be used for the result."""
        rows, inputs = x.shape
        rounded = self._rows.reserve(rows, inputs)
        quantize = Rows(x=x.data_ptr(), bytes=rounded, columns=inputs)
        self._kernels.run(self._kernels.quantize, byref(quantize), rows)
        self.product.bytes = rounded
        return super().__call__(x, out)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight [len(ids), inputs], as rounded."""
        packed = self._weight[ids // PANEL, :, ids % PANEL].view(len(ids), -1)
        return ((packed.float() - 128) * self._scales[ids].unsqueeze(1)).to(self._kernels.dtype)


def _packed(weight: torch.Tensor, kernels: NativeKernels) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes [panels, inputs / 4, 64, 4], which are 128 + w / scale, and the scales [panels x 64]."""
    outputs, inputs = weight.shape
    panels = panels_of(outputs)
    packed = kernels.arena.empty((panels, inputs // _WORD, PANEL, _WORD), torch.uint8)
    scales = torch.empty(panels * PANEL)
    step = max(1, _PIECE // (PANEL * inputs))
    for panel in range(0, panels, step):
        part = weight[panel * PANEL : (panel + step) * PANEL]
        count = panels_of(len(part))
        wide = F.pad(part.float(), (0, 0, 0, count * PANEL - len(part)))
        scale = wide.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny) / _LARGEST
        rounded = (wide / scale.unsqueeze(1)).round_().add_(_LARGEST + 1).to(torch.uint8)
        packed[panel : panel + count] = rounded.view(count, PANEL, inputs // _WORD, _WORD).transpose(1, 2)
        scales[panel * PANEL : (panel + count) * PANEL] = scale
    return packed, scales
