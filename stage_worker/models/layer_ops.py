"""The element-wise parts of a layer, in Hugging Face's order of operations and roundings."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional as F


class LayerOps(Protocol):
    """What happens between the products of a layer; `out` may be used for the result."""

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalize rows of [tokens, hidden]."""
        ...

    def add_rms_norm(
        self,
        x: torch.Tensor,
        delta: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add `delta` to the residual stream x in place, and return x normalized."""
        ...

    def swiglu(self, gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """silu(gate) x up: [tokens, 2 x intermediate] -> [tokens, intermediate]."""
        ...


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalize over the last dimension, in float32, rounding before the weight is applied."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


class TorchLayerOps:
    """Plain PyTorch, on any device."""

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalize rows of [tokens, hidden]."""
        return rms_norm(x, weight, eps)

    def add_rms_norm(
        self,
        x: torch.Tensor,
        delta: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add `delta` to the residual stream x in place, and return x normalized."""
        return rms_norm(x.add_(delta), weight, eps)

    def swiglu(self, gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """silu(gate) x up: [tokens, 2 x intermediate] -> [tokens, intermediate]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
