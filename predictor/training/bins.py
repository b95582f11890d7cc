"""From lengths to the hazard model's table: bins, and in which of them each answer was at risk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.hazard import bin_of
from tidepipe_common.lengths.survival import censored_quantiles

Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]

BINS = 16
OUTER = (0.01, 0.02, 0.98, 0.99)
"""Further edges: the outer levels need bins of their own."""


def choose_edges(lengths: Floats, censored: Flags) -> Floats:
    """Bins of about equal probability; (k + 1,) whole tokens from 0 to the longest answer seen."""
    levels = sorted({*np.linspace(0.0, 1.0, BINS + 1)[1:-1].tolist(), *OUTER})
    quantiles = censored_quantiles(lengths, censored, levels)
    inner = np.ceil(quantiles[np.isfinite(quantiles)])
    longest = max(float(lengths.max()), 1.0)
    edges: Floats = np.unique(np.concatenate([[0.0], inner[(inner > 0) & (inner < longest)], [longest]]))
    return edges


@dataclass(frozen=True, slots=True)
class RiskTable:
    """Pairs of answer and bin: `ended` there or went on. All (pairs,)."""

    answer: Indices
    bin: Indices
    ended: Floats

    def of_answers(self, chosen: Flags) -> RiskTable:
        """Pairs of some answers only."""
        kept = chosen[self.answer]
        return RiskTable(self.answer[kept], self.bin[kept], self.ended[kept])


def risk_table(edges: Floats, lengths: Floats, censored: Flags) -> RiskTable:
    """An answer is at risk in every bin up to its own; one that was cut, in its own from the middle on."""
    own = bin_of(edges, lengths)
    middle = 0.5 * (edges[own] + edges[own + 1])
    in_own = ~censored | (lengths >= middle)
    bins = np.arange(len(edges) - 1)
    at_risk = (bins < own[:, None]) | ((bins == own[:, None]) & in_own[:, None])
    answer, column = np.nonzero(at_risk)
    ended = (column == own[answer]) & ~censored[answer]
    return RiskTable(answer, column, ended.astype(np.float64))


def base_log_odds(table: RiskTable, bins: int) -> Floats:
    """Log-odds of ending in each bin, over all answers."""
    ended = np.bincount(table.bin, weights=table.ended, minlength=bins)
    total = np.bincount(table.bin, minlength=bins)
    return np.asarray(np.log((ended + 0.5) / (total - ended + 0.5)), dtype=np.float64)


def tail_rate(edges: Floats, lengths: Floats, censored: Flags) -> float:
    """Hazard per token among the longest answers: ends over tokens lived behind the last eighth's start."""
    start = float(edges[-max(2, len(edges) // 8)])
    lived = float(np.maximum(lengths - start, 0.0).sum())
    ends = float(((lengths > start) & ~censored).sum())
    return (ends + 0.5) / (lived + float(edges[-1]))
