"""Levels that finished answers reached in what was predicted of them: the memory of a calibration."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

KEPT = 2048


class ReachedLevels:
    """The newest levels, bounded."""

    def __init__(self, levels: Iterable[float], lost: Iterable[bool]) -> None:
        """Oldest first."""
        self._levels = np.fromiter(levels, dtype=np.float64)[-KEPT:]
        self._lost = np.fromiter(lost, dtype=np.bool_)[-KEPT:]

    def __len__(self) -> int:
        return len(self._levels)

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Levels, and whether the answer was lost there."""
        return self._levels, self._lost

    def add(self, levels: NDArray[np.float64], lost: NDArray[np.bool_]) -> None:
        """New ones push out the oldest."""
        self._levels = np.concatenate([self._levels, levels])[-KEPT:]
        self._lost = np.concatenate([self._lost, lost])[-KEPT:]

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest: the world has changed."""
        self._levels, self._lost = self._levels[-count:], self._lost[-count:]
