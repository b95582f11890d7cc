"""Distributions of output lengths, many at a time: survival at the edges of shared bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_SURVIVAL = 1e-200


@dataclass(frozen=True, slots=True)
class LengthDistributions:
    """P(length > edge) of n answers.

    edges: (k + 1,) tokens, rising from 0. survival: (n, k + 1), falling from 1. Between edges it falls in a
    straight line; behind the last one by `tail_rate` (> 0, per token), exponentially: what nobody has seen
    goes on as the longest that were seen.
    """

    edges: Floats
    survival: Floats
    tail_rate: float

    def beyond(self, tokens: Floats) -> Floats:
        """P(length > tokens) of each answer, (n,); tokens: (n,), at least 0."""
        rows = np.arange(len(self.survival))
        right = np.clip(np.searchsorted(self.edges, tokens, side="left"), 1, len(self.edges) - 1)
        left = right - 1
        share = (tokens - self.edges[left]) / (self.edges[right] - self.edges[left])
        low, high = self.survival[rows, left], self.survival[rows, right]
        inside = low + np.minimum(share, 1.0) * (high - low)
        excess = np.maximum(tokens - self.edges[-1], 0.0)
        return np.asarray(inside * np.exp(-self.tail_rate * excess), dtype=np.float64)

    def quantiles(self, levels: Floats, generated: Floats | None = None) -> Floats:
        """Tokens at each level, (n, levels); inf for level 1 and above. levels: (levels,) or (n, levels).

        generated: (n,) tokens that each answer has already: the answer is known to be longer than that,
        P(length <= x | length > g) = 1 - S(x) / S(g).
        """
        left_over = np.broadcast_to(1.0 - levels, (len(self.survival), levels.shape[-1]))
        if generated is not None:
            reached = np.maximum(self.beyond(generated), LEAST_SURVIVAL)
            left_over = left_over * reached[:, None]
        tokens = np.empty(left_over.shape)
        for column in range(left_over.shape[1]):
            tokens[:, column] = self._inverse(left_over[:, column])
        if generated is not None:
            np.maximum(tokens, generated[:, None], out=tokens)
        return tokens

    def _inverse(self, target: Floats) -> Floats:
        """The length whose survival is `target`, (n,)."""
        rows = np.arange(len(self.survival))
        # First edge whose survival is at or below the target.
        right = np.sum(self.survival > target[:, None], axis=1)
        inside = right < len(self.edges)
        right = np.clip(right, 1, len(self.edges) - 1)
        left = right - 1
        low, high = self.survival[rows, left], self.survival[rows, right]
        drop = np.maximum(low - high, LEAST_SURVIVAL)
        share = np.clip((low - target) / drop, 0.0, 1.0)
        tokens = self.edges[left] + share * (self.edges[right] - self.edges[left])
        with np.errstate(divide="ignore"):
            excess = np.log(np.maximum(self.survival[:, -1], LEAST_SURVIVAL) / np.maximum(target, 0.0))
        behind = self.edges[-1] + np.maximum(excess, 0.0) / self.tail_rate
        return np.asarray(np.where(inside, tokens, behind), dtype=np.float64)
