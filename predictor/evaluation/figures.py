"""Figures of merit of predictions: coverage, pinball loss, errors of single answers and of sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from tidepipe_common.lengths.request import Observation

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of n answers, lengths in tokens, at most max_tokens each: what callers see.

    coverage, pinball_by_level: per level. pinball: mean over the levels. mae_tokens: of the medians.
    left_out: answers that were cancelled, whose length nobody knows.
    """

    answers: int
    left_out: int
    coverage: dict[str, float]
    mae_tokens: float
    pinball: float
    pinball_by_level: dict[str, float]
    mean_tokens: float

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def figures(observations: Sequence[Observation], quantiles: Floats, levels: Sequence[float]) -> Figures:
    """quantiles: (n, levels), tokens."""
    known = np.array([not one.lost for one in observations], dtype=np.bool_)
    lengths = np.array([float(one.output_tokens) for one in observations])[known]
    found, asked = quantiles[known], np.asarray(levels)
    losses = pinball(lengths, found, asked).mean(axis=0)
    covered = (lengths[:, None] <= found).mean(axis=0)
    names = [level_name(level) for level in levels]
    middle = found[:, int(np.argmin(np.abs(asked - 0.5)))]
    return Figures(
        answers=len(lengths),
        left_out=len(observations) - len(lengths),
        coverage=dict(zip(names, covered.tolist(), strict=True)),
        mae_tokens=float(np.abs(lengths - middle).mean()),
        pinball=float(losses.mean()),
        pinball_by_level=dict(zip(names, losses.tolist(), strict=True)),
        mean_tokens=float(lengths.mean()),
    )


def pinball(lengths: Floats, quantiles: Floats, levels: Floats) -> Floats:
    """(n, levels): level * (y - q) where the answer was longer, (1 - level) * (q - y) where it was not."""
    error = lengths[:, None] - quantiles
    return np.asarray(np.maximum(levels * error, (levels - 1.0) * error), dtype=np.float64)


def sum_error(lengths: Floats, expected: Floats, group: int, chance: np.random.Generator) -> float:
    """Mean relative error of the sums over random groups; lengths, expected: (n,) tokens."""
    errors = []
    for _ in range(200):
        drawn = chance.choice(len(lengths), min(group, len(lengths)), replace=False)
        total = lengths[drawn].sum()
        errors.append(abs(expected[drawn].sum() - total) / max(total, 1.0))
    return float(np.mean(errors))


def level_name(level: float) -> str:
    """0.5 is p50, 0.999 is p99.9."""
    return f"p{100 * level:g}"
