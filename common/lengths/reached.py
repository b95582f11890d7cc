"""Levels that finished answers reached in what was predicted of them, and the calibration that follows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from common.lengths.calibration import calibrated_levels

KEPT = 2048


class ReachedLevels:
    """The newest levels, bounded."""

    def __init__(self, levels: Iterable[float], lost: Iterable[bool]) -> None:
        """Oldest first."""
        self._calibrated: dict[tuple[float, ...], NDArray[np.float64]] = {}
        self._levels = np.fromiter(levels, dtype=np.float64)[-KEPT:]
        self._lost = np.fromiter(lost, dtype=np.bool_)[-KEPT:]

    def __len__(self) -> int:
        return len(self._levels)

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Levels, and whether the answer was lost there."""
        return self._levels, self._lost

    def calibrated(self, levels: tuple[float, ...]) -> NDArray[np.float64]:
        """The model's levels that cover the given shares of answers; computed anew only after a change."""
        if levels not in self._calibrated:
            self._calibrated[levels] = calibrated_levels(self._levels, self._lost, levels)
        return self._calibrated[levels]

    def add(self, levels: NDArray[np.float64], lost: NDArray[np.bool_]) -> None:
        """New ones push out the oldest."""
        self._levels = np.concatenate([self._levels, levels])[-KEPT:]
        self._calibrated.clear()
        self._lost = np.concatenate([self._lost, lost])[-KEPT:]

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest: the world has changed."""
        self._calibrated.clear()
        self._levels, self._lost = self._levels[-count:], self._lost[-count:]
