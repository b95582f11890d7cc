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
from tidepipe_common.lengths.shares import Owners, fair_newest, left_by_change, owners_of
from tidepipe_common.lengths.survival import censored_quantiles

HIGHEST = 0.9999
"""Asked for at most: level 1 of a distribution without end is infinite."""
KEPT = 2048
LEAST_OF_LIMIT = 200
"""So many answers with one max_tokens are calibrated by themselves."""
LEAST_OF_OWNER = 64
"""So many answers of one owner are calibrated by themselves: whatever others ask for, theirs stay right."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
_Group = tuple[int | None, float | None]
"""Owner and limit; None for all the others."""


@dataclass(frozen=True, slots=True)
class Ends:
    """How answers ended, and whose they were; all (n,). cut: by a limit or cancelled. lost: cancelled before
    the limit."""

    cut: Flags
    lost: Flags
    limits: Floats
    owners: Owners

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> Ends:
        """In their order."""
        return cls(
            np.array([one.censored for one in observations], dtype=np.bool_),
            np.array([one.lost for one in observations], dtype=np.bool_),
            np.array([one.features.limit for one in observations], dtype=np.float64),
            owners_of(observations),
        )

    def chosen(self, which: Flags | NDArray[np.int64]) -> Ends:
        """Some of them: flags, or places."""
        return Ends(self.cut[which], self.lost[which], self.limits[which], self.owners[which])

    def followed_by(self, later: Ends) -> Ends:
        """These, then those."""
        return Ends(
            np.concatenate([self.cut, later.cut]),
            np.concatenate([self.lost, later.lost]),
            np.concatenate([self.limits, later.limits]),
            np.concatenate([self.owners, later.owners]),
        )


class LevelLists(NamedTuple):
    """Levels and how their answers ended, as files keep them: nobody's any more. limits: 0 for none."""

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
            owners=np.zeros(len(limits), dtype=np.int64),
        )
        return ReachedLevels(np.array(self.reached), ends)


class ReachedLevels:
    """The newest levels, bounded, and shared out among owners (`fair_newest`).

    Answers that were cut count as "at least" (Kaplan-Meier), also by their own limit: a level is then right
    for those whose quantile lies below the limit, and the rest are covered by the limit itself. To make the
    two together cover the level and no more, quantiles would have to be too low wherever many answers reach
    the limit. What requests with one limit have in common otherwise is theirs only, so each that is frequent
    is calibrated by its own answers; and so is each owner.
    """

    def __init__(self, levels: Floats, ends: Ends) -> None:
        """Oldest first."""
        kept = fair_newest(ends.owners, KEPT)
        self._levels, self._ends = levels[kept], ends.chosen(kept)
        self._asked: dict[tuple[_Group, tuple[float, ...]], Floats] = {}
        self._groups = self._grouped()

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

    def asked(self, levels: tuple[float, ...], limits: Floats, owners: Owners) -> Floats:
        """The model's levels that cover the given shares, for requests with these limits, of these owners:
        (n, levels)."""
        pairs = zip(owners.tolist(), limits.tolist(), strict=True)
        return np.stack([self._asked_of(levels, owner, limit) for owner, limit in pairs])

    def add(self, levels: Floats, ends: Ends) -> None:
        """New ones push out the oldest."""
        self._levels = np.concatenate([self._levels, levels])
        self._ends = self._ends.followed_by(ends)
        self._keep(fair_newest(self._ends.owners, KEPT))

    def keep_newest(self, count: int) -> None:
        """Forget what the newest have shown to have changed (`left_by_change`)."""
        self._keep(left_by_change(self._ends.owners, count))

    def _keep(self, places: NDArray[np.int64]) -> None:
        self._levels, self._ends = self._levels[places], self._ends.chosen(places)
        self._asked.clear()
        self._groups = self._grouped()

    def _grouped(self) -> dict[_Group, Flags]:
        """Which answers calibrate those of an owner, and of them those with a limit, where they are many."""
        owners, limits = self._ends.owners, self._ends.limits
        values, counts = np.unique(owners, return_counts=True)
        # After a change few are left; if they are all alike they need not be many.
        frequent = values[counts >= min(LEAST_OF_OWNER, len(owners))]
        rest = ~np.isin(owners, frequent)
        whose: dict[int | None, Flags] = {int(owner): owners == owner for owner in frequent}
        whose[None] = rest if rest.sum() >= LEAST_OF_OWNER else np.ones(len(owners), dtype=np.bool_)
        found: dict[_Group, Flags] = {}
        for owner, own in whose.items():
            found[owner, None] = own
            values, counts = np.unique(limits[own], return_counts=True)
            for limit in values[counts >= min(LEAST_OF_LIMIT, own.sum())].tolist():
                found[owner, limit] = own & (limits == limit)
        return found

    def _asked_of(self, levels: tuple[float, ...], owner: int, limit: float) -> Floats:
        known = owner if (owner, None) in self._groups else None
        group: _Group = (known, limit) if (known, limit) in self._groups else (known, None)
        if (found := self._asked.get((group, levels))) is None:
            own = self._groups[group]
            found = calibrated_levels(self._levels[own], self._ends.cut[own], levels)
            self._asked[group, levels] = found
        return found


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
