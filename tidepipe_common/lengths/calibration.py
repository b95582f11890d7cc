"""Conformal calibration: which level of a model's distribution is really the 90th percentile?

A model says F(length). If it were right, F at the lengths that came true would be uniform. Where it is not,
the 90 % quantile of those values is the level to ask the model for: the share of new answers below it is
90 % whatever the model's faults, as long as they are exchangeable with the ones seen (distributional
conformal prediction, Chernozhukov et al., PNAS 2021). Levels keep their order, so quantiles cannot cross.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidepipe_common.lengths.request import Observation
from tidepipe_common.lengths.survival import censored_quantiles

HIGHEST = 0.9999
"""Asked for at most: level 1 of a distribution without end is infinite."""
KEPT = 2048
LEAST_OF_LIMIT = 200
"""So many answers with one max_tokens are calibrated by themselves."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ends:
    """How answers ended; all (n,). cut: by a limit or cancelled. lost: cancelled before the limit."""

    cut: Flags
    lost: Flags
    limits: Floats

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> Ends:
        """In their order."""
        return cls(
            np.array([one.censored for one in observations], dtype=np.bool_),
            np.array([one.lost for one in observations], dtype=np.bool_),
            np.array([one.features.limit for one in observations], dtype=np.float64),
        )


class LevelLists(NamedTuple):
    """Levels and how their answers ended, as files keep them. limits: 0 for none."""

    reached: list[float]
    cut: list[bool]
    lost: list[bool]
    limits: list[int]

    @property
    def alike(self) -> bool:
        """Are they of the same answers?"""
        return len(self.reached) == len(self.cut) == len(self.lost) == len(self.limits)

    def levels(self) -> ReachedLevels:
        """As they were."""
        limits = np.array(self.limits, dtype=np.float64)
        ends = Ends(
            cut=np.array(self.cut, dtype=np.bool_),
            lost=np.array(self.lost, dtype=np.bool_),
            limits=np.where(limits > 0, limits, np.inf),
        )
        return ReachedLevels(np.array(self.reached), ends)


class ReachedLevels:
    """The newest levels, bounded.

    Answers that were cut count as "at least" (Kaplan-Meier), also by their own limit: a level is then right
    for those whose quantile lies below the limit, and the rest are covered by the limit itself. To make the
    two together cover the level and no more, quantiles would have to be too low wherever many answers reach
    the limit. What requests with one limit have in common otherwise is theirs only, so each that is frequent
    is calibrated by its own answers.
    """

    def __init__(self, levels: Floats, ends: Ends) -> None:
        """Oldest first."""
        self._levels = levels[-KEPT:]
        self._ends = _newest(ends, KEPT)
        self._asked: dict[tuple[float | None, tuple[float, ...]], Floats] = {}
        self._frequent = self._count()

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def levels(self) -> Floats:
        """(n,)."""
        return self._levels

    @property
    def ends(self) -> Ends:
        """Of the same answers."""
        return self._ends

    def lists(self) -> LevelLists:
        """For a file."""
        ends = self._ends
        limits = np.where(np.isfinite(ends.limits), ends.limits, 0.0).astype(int)
        return LevelLists(self._levels.tolist(), ends.cut.tolist(), ends.lost.tolist(), limits.tolist())

    def copy(self) -> ReachedLevels:
        """The same now; what comes later is added to one of them."""
        return ReachedLevels(self._levels, self._ends)

    def asked(self, levels: tuple[float, ...], limits: Floats) -> Floats:
        """The model's levels that cover the given shares, for requests with these limits: (n, levels)."""
        return np.stack([self._asked_of(levels, limit) for limit in limits.tolist()])

    def add(self, levels: Floats, ends: Ends) -> None:
        """New ones push out the oldest."""
        self._set(
            np.concatenate([self._levels, levels]),
            Ends(
                np.concatenate([self._ends.cut, ends.cut]),
                np.concatenate([self._ends.lost, ends.lost]),
                np.concatenate([self._ends.limits, ends.limits]),
            ),
            KEPT,
        )

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest: the world has changed."""
        self._set(self._levels, self._ends, count)

    def _set(self, levels: Floats, ends: Ends, kept: int) -> None:
        self._levels, self._ends = levels[-kept:], _newest(ends, kept)
        self._asked.clear()
        self._frequent = self._count()

    def _count(self) -> frozenset[float]:
        values, counts = np.unique(self._ends.limits, return_counts=True)
        # After a change few are left; if they are all alike they need not be many.
        least = min(LEAST_OF_LIMIT, len(self._levels))
        return frozenset(values[counts >= least].tolist())

    def _asked_of(self, levels: tuple[float, ...], limit: float) -> Floats:
        group = limit if limit in self._frequent else None
        if (found := self._asked.get((group, levels))) is None:
            own = np.ones(len(self._levels), dtype=np.bool_) if group is None else self._ends.limits == group
            found = calibrated_levels(self._levels[own], self._ends.cut[own], levels)
            self._asked[group, levels] = found
        return found


def _newest(ends: Ends, count: int) -> Ends:
    return Ends(ends.cut[-count:], ends.lost[-count:], ends.limits[-count:])


def calibrated_levels(
    reached: NDArray[np.float64], censored: NDArray[np.bool_], levels: Sequence[float]
) -> NDArray[np.float64]:
    """The model's levels that cover the given shares.

    reached: F at each length that was seen, (n,). censored: the answer would have gone on; such values say
    "at least" (Kaplan-Meier). For finite samples, ceil((n + 1) level) of n are asked for.
    """
    count = len(reached)
    wanted = [min(1.0, math.ceil((count + 1) * level) / count) for level in levels]
    found = censored_quantiles(reached, censored, wanted)
    return np.minimum(found, HIGHEST)
