"""Products of the same rows whose weights cannot be stacked, such as of different bits, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stage_worker.models.linear import Linear


class JoinedLinear:
    """Results of several products, one behind the other in each row."""

    def __init__(self, parts: Sequence[Linear], outputs: Sequence[int]) -> None:
        """outputs: of each part."""
        self.parts = tuple(parts)
        self._outputs = tuple(outputs)

    @property
    def nbytes(self) -> int:
        """Memory of weights and biases, bytes."""
        return sum(part.nbytes for part in self.parts)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply; `out` may be used for the result."""
        return torch.cat([part(x) for part in self.parts], dim=1)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Not for these: an LM head is one weight."""
        raise NotImplementedError


def parts_of(linear: Linear) -> tuple[Linear, ...]:
    """What a product is made of; itself if it is not joined."""
    return linear.parts if isinstance(linear, JoinedLinear) else (linear,)
