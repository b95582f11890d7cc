"""Products and row operations by the C kernels, on CPU."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref

import torch
from torch.nn import functional as F

from stage_worker.models.native.library import NativeKernels
from stage_worker.models.native.structures import PANEL, Product, Rows

_LEAST_ROWS = 16
"""Rows that a thread must have to be worth waking."""


class NativeProduct:
    """A product of rows with a weight [outputs, inputs] by the kernels, however the weight is stored."""

    def __init__(
        self,
        kernels: NativeKernels,
        shape: Sequence[int],
        bias: torch.Tensor | None,
        float_out: bool,
        **stored: int,
    ) -> None:
        """stored: what the structure says of the weight beside its shape."""
        outputs, inputs = shape
        self._kernels = kernels
        self._outputs = outputs
        self._panels = panels_of(outputs)
        self._bias = bias.float() if bias is not None else None
        self._out_dtype = torch.float32 if float_out else kernels.dtype
        self.product = Product(
            bias=self._bias.data_ptr() if self._bias is not None else None,
            inputs=inputs,
            outputs=outputs,
            stride=outputs,
            float_out=int(float_out),
            **stored,
        )
        self._reference = byref(self.product)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply; `out` may be used for the result."""
        if out is None:
            out = torch.empty(x.shape[0], self._outputs, dtype=self._out_dtype)
        arguments = self.product
        arguments.x = x.data_ptr()
        arguments.out = out.data_ptr()
        arguments.rows = x.shape[0]
        self._kernels.run(self._kernels.product, self._reference, self._panels)
        return out


def panels_of(outputs: int) -> int:
    """Panels that so many outputs take."""
    return -(-outputs // PANEL)


class NativeLinear(NativeProduct):
    """Weights packed for the kernel: [outputs / 64][inputs / pair][64][pair].

    Each output is summed in one fixed order, so that a row's result does not depend on the other rows.
    """

    def __init__(
        self,
        kernels: NativeKernels,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        float_out: bool = False,
    ) -> None:
        self._weight = _packed(weight, kernels)
        super().__init__(kernels, weight.shape, bias, float_out, weight=self._weight.data_ptr())

    @staticmethod
    def fits(kernels: NativeKernels, weight: torch.Tensor) -> bool:
        """True if the kernel can multiply with this weight [outputs, inputs]."""
        return weight.shape[1] % kernels.pair == 0

    @property
    def nbytes(self) -> int:
        """Memory of weight and bias, bytes."""
        return self._weight.nbytes + (self._bias.nbytes if self._bias is not None else 0)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight [len(ids), inputs]."""
        return self._weight[ids // PANEL, :, ids % PANEL].view(len(ids), -1)


def _packed(weight: torch.Tensor, kernels: NativeKernels) -> torch.Tensor:
    """Weights [outputs, inputs] as panels."""
    outputs, inputs = weight.shape
    panels, pair = panels_of(outputs), kernels.pair
    packed = kernels.arena.empty((panels, inputs // pair, PANEL, pair), weight.dtype)
    whole = outputs // PANEL
    rows = weight[: whole * PANEL].view(whole, PANEL, inputs // pair, pair)
    packed[:whole] = rows.transpose(1, 2)
    if whole < panels:
        rest = F.pad(weight[whole * PANEL :], (0, 0, 0, panels * PANEL - outputs))
        packed[whole] = rest.view(PANEL, inputs // pair, pair).transpose(0, 1)
    return packed


class NativeLayerOps:
    """What happens between the products, one pass over memory each."""

    def __init__(self, kernels: NativeKernels) -> None:
        self._kernels = kernels
        self._arguments = Rows()
        self._reference = byref(self._arguments)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalize rows of [tokens, hidden]."""
        return self._norm(x, None, weight, eps, out)

    def add_rms_norm(
        self,
        x: torch.Tensor,
        delta: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add `delta` to the residual stream x in place, and return x normalized."""
        return self._norm(x, delta.data_ptr(), weight, eps, out)

    def swiglu(self, gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """silu(gate) x up: [tokens, 2 x intermediate] -> [tokens, intermediate]."""
        rows, columns = gate_up.shape
        if out is None:
            out = torch.empty(rows, columns // 2, dtype=gate_up.dtype)
        arguments = self._arguments
        arguments.x, arguments.out = gate_up.data_ptr(), out.data_ptr()
        arguments.rows, arguments.columns = rows, columns // 2
        self._kernels.run(self._kernels.swiglu, self._reference, rows, _LEAST_ROWS)
        return out

    def _norm(
        self, x: torch.Tensor, delta: int | None, weight: torch.Tensor, eps: float, out: torch.Tensor | None
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty_like(x)
        arguments = self._arguments
        arguments.x, arguments.y, arguments.out = x.data_ptr(), delta, out.data_ptr()
        arguments.weight, arguments.eps = weight.data_ptr(), eps
        arguments.rows, arguments.columns = x.shape
        self._kernels.run(self._kernels.norm, self._reference, arguments.rows, _LEAST_ROWS)
        return out
