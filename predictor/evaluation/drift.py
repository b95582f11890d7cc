"""Notices that lengths have changed: the newest answers are no longer covered as they should be."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from tidepipe_common.lengths.distribution import Floats

LEVELS = (0.5, 0.9)
SPANS = (64, 128, 256)
"""So many of the newest answers are looked at: few show a great change soon, many show a small one."""
DEVIATIONS = 4.0
"""Standard deviations of a coverage that stand for a change; false alarms once in some 10,000 answers."""


class DriftWatch:
    """Coverage of the newest answers at LEVELS."""

    def __init__(self) -> None:
        self._covered: deque[Sequence[float]] = deque(maxlen=SPANS[-1])

    def note(self, covered: Floats) -> int | None:
        """1 for an answer that was not longer than predicted, 0 for one that was; (n, LEVELS), oldest first.

        NaN where that says nothing: a prediction at the limit covers whatever comes. Returns how many of
        the newest tell of the world as it is now, or None if nothing has changed.
        """
        self._covered.extend(covered.tolist())
        if len(self._covered) < SPANS[0]:
            return None
        seen = np.array(self._covered)
        for span in SPANS:
            newest = seen[-span:]
            counts = np.maximum((~np.isnan(newest)).sum(axis=0), 1)
            shares = np.nansum(newest, axis=0) / counts
            levels = np.array(LEVELS)
            tolerated = DEVIATIONS * np.sqrt(levels * (1.0 - levels) / counts)
            if (counts >= SPANS[0] // 2)[abs(shares - levels) > tolerated].any():
                return span
            if len(seen) <= span:
                return None
        return None

    def restart(self) -> None:
        """Forget: the predictions are made anew."""
        self._covered.clear()

    def coverage(self) -> tuple[float, ...]:
        """Of the newest answers, at LEVELS; zeros before there are any."""
        if not self._covered:
            return (0.0,) * len(LEVELS)
        seen = np.array(self._covered)
        return tuple((np.nansum(seen, axis=0) / np.maximum((~np.isnan(seen)).sum(axis=0), 1)).tolist())
