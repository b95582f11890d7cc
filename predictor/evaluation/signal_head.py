"""A head: what one served model's length signals say of its answers, on top of what their requests do.

Discrete-time proportional hazards: the log-odds that an answer ends in a bin, given that it got there, are
the bin's own plus a weighted sum of the signal's numbers and of what the text's model predicts. So few
weights can be learned from a few hundred answers, cut ones included, and tell the whole distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tidepipe_common.lengths.calibration import Ends, ReachedLevels
from tidepipe_common.lengths.distribution import Floats, LengthDistributions
from tidepipe_common.lengths.request import LEVELS
from tidepipe_common.lengths.shares import Owners
from tidepipe_common.types.length_signal import NUMBERS, signal_numbers

TOLD = (0.5, 0.9)
"""Levels of the text's model that a head looks at."""
TOLD_PLACES = [LEVELS.index(level) for level in TOLD]
COLUMNS = NUMBERS + len(TOLD)
FARTHEST = 4.0
"""Standard deviations: what lies beyond is taken to be there."""


@dataclass(frozen=True, slots=True)
class SignalHead:
    """edges: (k + 1,) tokens, from 0. base: (k,) log-odds of ending in each bin. tail_rate: hazard per token
    behind the last edge. mean, scale, weights: (COLUMNS,) of the columns. answers: that it was trained on.
    """

    version: str
    answers: int
    edges: Floats
    base: Floats
    tail_rate: float
    mean: Floats
    scale: Floats
    weights: Floats
    calibration: ReachedLevels

    def distributions(self, columns: Floats) -> LengthDistributions:
        """One for each row of `head_columns`."""
        standard = np.clip((columns - self.mean) / self.scale, -FARTHEST, FARTHEST)
        logits = self.base + (standard @ self.weights)[:, None]
        survival = np.ones((len(columns), len(self.edges)))
        np.cumprod(1.0 / (1.0 + np.exp(np.clip(logits, -30.0, 30.0))), axis=1, out=survival[:, 1:])
        return LengthDistributions(self.edges, survival, self.tail_rate)

    def quantiles(
        self, columns: Floats, limits: Floats, generated: Floats, owners: Owners | None = None
    ) -> Floats:
        """(n, LEVELS) tokens, at most the limits, of answers that are longer than `generated`; all (n,).

        owners: None for nobody's.
        """
        whose = np.zeros(len(limits), dtype=np.int64) if owners is None else owners
        asked = self.calibration.asked(LEVELS, limits, whose)
        found = self.distributions(columns).quantiles(asked, generated if generated.any() else None)
        return np.asarray(np.minimum(found, limits[:, None]), dtype=np.float64)

    def learn(self, columns: Floats, lengths: Floats, ends: Ends) -> None:
        """Answers that ended and that it was not trained on: they calibrate it."""
        self.calibration.add(1.0 - self.distributions(columns).beyond(lengths), ends)

    def copy(self) -> SignalHead:
        """The same now, to be stored while this one is calibrated on."""
        return replace(self, calibration=self.calibration.copy())


def told_columns(tokens: Sequence[Sequence[float]]) -> Floats:
    """What the text's model predicts, (n, TOLD). tokens: at LEVELS, of whole answers."""
    return np.log1p(np.array(tokens, dtype=np.float64)[:, TOLD_PLACES])


def head_columns(signals: Sequence[bytes], told: Floats) -> Floats:
    """(n, COLUMNS); signals are sound, and those that are short are filled up with zeros."""
    columns = np.zeros((len(signals), COLUMNS))
    for row, values in enumerate(signals):
        numbers = signal_numbers(values)
        columns[row, : len(numbers)] = numbers
    columns[:, NUMBERS:] = told
    return columns
