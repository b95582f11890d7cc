"""The floor: the least loss that any predictor can have which knows the prompt and not the answer.

Answers to one prompt differ. What is best said of a new one are the quantiles of the prompt's own
distribution; their mean loss is the floor. Several answers a prompt bound it. Quantiles of an answer's
siblings, without itself, lose more, as they are estimates (answers to other prompts are mixed in as far as
that helps); quantiles of all of them lose less, as they have seen the answer. Both errors fade as
1 / answers, which gives a value between: extrapolated from all siblings and half of them, and held within
the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.evaluation.figures import pinball
from tidepipe_common.lengths.distribution import Floats

MIXED = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0)
"""Shares of the answers to other prompts that are tried."""
PARTS = 24
"""Random halves of the siblings."""
LEAST_SIBLINGS = 2


@dataclass(frozen=True, slots=True)
class FloorBounds:
    """Pinball losses of each prompt, (prompts, levels). half: the upper bound of half of the siblings.

    sizes: (prompts,) answers to each.
    """

    upper: Floats
    half: Floats
    lower: Floats
    sizes: Floats

    def of(self, chosen: NDArray[np.int64]) -> FloorBounds:
        """Of some of the prompts."""
        return FloorBounds(self.upper[chosen], self.half[chosen], self.lower[chosen], self.sizes[chosen])

    @property
    def most(self) -> Floats:
        """(levels,)."""
        return np.asarray(self.upper.mean(axis=0), dtype=np.float64)

    @property
    def least(self) -> Floats:
        """(levels,)."""
        return np.asarray(self.lower.mean(axis=0), dtype=np.float64)

    @property
    def floor(self) -> Floats:
        """(levels,) where the upper bound goes with ever more siblings: it falls by c / siblings."""
        many, few = np.mean(1.0 / (self.sizes - 1.0)), np.mean(1.0 / ((self.sizes - 1.0) // 2))
        ahead = self.most - (self.half.mean(axis=0) - self.most) * many / (few - many)
        return np.asarray(np.clip(ahead, self.least, self.most), dtype=np.float64)


def floor_bounds(
    answers: Sequence[Floats], kinds: Sequence[object], levels: Sequence[float], seed: int = 0
) -> FloorBounds:
    """answers: tokens of the answers to each prompt, each more than LEAST_SIBLINGS.

    kinds: of the prompts: what is mixed in are answers to others of its kind, as much as suits all of a kind,
    a level and a number of siblings.
    """
    chance = np.random.default_rng(seed)
    asked = np.asarray(levels)
    upper, half, lower = (np.empty((len(answers), len(asked))) for _ in range(3))
    for kind in dict.fromkeys(kinds):
        places = [place for place, one in enumerate(kinds) if one == kind]
        grid = np.unique(np.concatenate([answers[place] for place in places]))
        counts = [np.bincount(np.searchsorted(grid, answers[place]), minlength=len(grid)) for place in places]
        total = np.sum(counts, axis=0)
        for halved, found in ((False, upper), (True, half)):
            tried = []
            for place, own in zip(places, counts, strict=True):
                lengths, others = answers[place], np.cumsum(total - own)
                siblings = (len(lengths) - 1) // 2 if halved else len(lengths) - 1
                pool = others / max(float(others[-1]), 1.0)
                tried.append(_left_out(lengths, grid, pool, siblings, asked, chance))
            best = np.mean(tried, axis=0).argmin(axis=0)
            found[places] = np.array(tried)[:, best, np.arange(len(asked))]
        for place in places:
            own_quantiles = np.quantile(answers[place], asked, method="inverted_cdf")
            lower[place] = _loss(answers[place], own_quantiles, asked)
    return FloorBounds(upper, half, lower, np.array([float(len(one)) for one in answers]))


def variance(answers: Sequence[Floats]) -> dict[str, float]:
    """One-way analysis of variance, in tokens: standard deviations within and between prompts, and the
    share of the variance that lies between."""
    within = float(np.mean([one.var(ddof=1) for one in answers]))
    means = np.array([one.mean() for one in answers])
    noise = float(np.mean([one.var(ddof=1) / len(one) for one in answers]))
    between = max(0.0, float(means.var(ddof=1)) - noise)
    return {
        "within_sd": within**0.5,
        "between_sd": between**0.5,
        "share_between": between / max(between + within, 1e-9),
    }


def _left_out(
    lengths: Floats,
    grid: Floats,
    pool: Floats,
    siblings: int,
    levels: Floats,
    chance: np.random.Generator,
) -> Floats:
    """(MIXED, levels) losses of answers that are predicted by so many others.

    grid, pool: (values,) all lengths that there are, and the distribution function of answers to other
    prompts.
    """
    count = len(lengths)
    if siblings == count - 1:
        chosen = [(one, np.delete(np.arange(count), one)) for one in range(count)]
    else:
        order = [chance.permutation(count)[: siblings + 1] for _ in range(PARTS)]
        chosen = [(int(one[0]), one[1:]) for one in order]
    held = lengths[[one for one, _ in chosen]]
    own = np.stack([(lengths[others][:, None] <= grid).mean(axis=0) for _, others in chosen])
    found = []
    for mixed in MIXED:
        mixture = mixed * pool + (1.0 - mixed) * own
        places = [(mixture < level - 1e-9).sum(axis=1).clip(max=len(grid) - 1) for level in levels]
        found.append(_loss(held, grid[np.stack(places, axis=1)], levels))
    return np.array(found)


def _loss(lengths: Floats, quantiles: Floats, levels: Floats) -> Floats:
    """(levels,) means. quantiles: (n, levels) or (levels,)."""
    everywhere = np.broadcast_to(quantiles, (len(lengths), len(levels)))
    return np.asarray(pinball(lengths, everywhere, levels).mean(axis=0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Knowable:
    """What several answers to each of some prompts say of a model; mean absolute errors in tokens.

    plain: of the median of all answers. model: of a model that had not seen the prompts. floor, least, most:
    see above. share_between: of the variance of the lengths, what lies between prompts.
    """

    prompts: int
    answers: int
    share_between: float
    plain: float
    model: float
    floor: float
    least: float
    most: float

    @property
    def share(self) -> float:
        """Of the way from `plain` (0) to the floor (1); 0 where there is no way."""
        return (self.plain - self.model) / (self.plain - self.floor) if self.plain > self.floor else 0.0


def knowable(answers: Sequence[Floats], medians: Sequence[Floats], kinds: Sequence[object]) -> Knowable:
    """medians: what a model said of each answer."""
    bounds = floor_bounds(answers, kinds, (0.5,))
    middle = float(np.median(np.concatenate(answers)))

    def error(said: Sequence[Floats | float]) -> float:
        return float(np.mean([np.abs(own - one).mean() for own, one in zip(answers, said, strict=True)]))

    floor, least, most = (2.0 * float(loss[0]) for loss in (bounds.floor, bounds.least, bounds.most))
    between = variance(answers)["share_between"]
    count = sum(map(len, answers))
    plain = error([middle] * len(answers))
    return Knowable(len(answers), count, between, plain, error(medians), floor, least, most)
