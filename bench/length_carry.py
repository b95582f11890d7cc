"""Errors of predictions of real answers, carried to other mixes of lengths: as ranks, in place of tokens.

An answer's rank among all answers, and the ranks of the median and the 90th percentile that were predicted of
it, are what a predictor knows, whatever the lengths are. A request of another mix takes the predictions of
the real answer whose rank among real answers is its own rank there, and reads their ranks as quantiles of the
mix: so it is told of each length what was told of real ones, P50 and P90 given the truth, faults included.

Ranks behind the limit that cut an answer are not seen. There, in normal scores (Gaussian copula):
* a prompt's predicted quantiles go on in a straight line through those below the limit;
* where a cut answer would have ended is drawn, given what was predicted and that it got there, with the
  correlation of predicted and true that makes what was seen likeliest (cut answers counting as "at least").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri

from simulator.predictions import Quantiles
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.request import LEVELS

TOLD = (LEVELS.index(0.5), LEVELS.index(0.9))
_SCORES = ndtri(np.array(LEVELS))
_CORRELATIONS = np.linspace(0.0, 0.98, 99)
_LEAST_SLOPE = 0.05


@dataclass(frozen=True, slots=True)
class Answers:
    """Real answers. lengths, cut: (n,); cut ones have the length of their limit. prompts: (n,) of each."""

    lengths: Floats
    cut: NDArray[np.bool_]
    prompts: NDArray[np.int64]

    @classmethod
    def of(cls, lines: list[dict[str, Any]]) -> Answers:
        """From what `bench.length_draws` wrote."""
        return cls(
            np.concatenate([line["lengths"] for line in lines]).astype(np.float64),
            np.concatenate([line["capped"] for line in lines]).astype(np.bool_),
            np.repeat(np.arange(len(lines)), [len(line["lengths"]) for line in lines]),
        )

    def rank(self, tokens: Floats) -> Floats:
        """Share of the answers that are shorter, (n,) tokens below the limit; ties count half."""
        ordered, count = np.sort(self.lengths), len(self.lengths)
        places = np.searchsorted(ordered, tokens, "left") + np.searchsorted(ordered, tokens, "right")
        return np.asarray(np.clip(places / 2 / count, 0.5 / count, 1.0 - 0.5 / count), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RankedErrors:
    """One line for each real answer, by rising rank.

    truth: (n,) ranks. told: by who predicts, (n, 2) ranks of P50 and P90. correlation: of normal scores,
    predicted and true, by who predicts.
    """

    truth: Floats
    told: dict[str, Floats]
    correlation: dict[str, float]

    def predictions(self, outputs: list[int], chance: np.random.Generator) -> dict[str, list[Quantiles]]:
        """What is told of requests with such outputs, tokens. Ties are broken by chance."""
        lengths = np.array(outputs, dtype=np.float64)
        rank = np.empty(len(lengths))
        rank[np.lexsort((chance.random(len(lengths)), lengths))] = np.arange(len(lengths))
        lines = ((rank + chance.random(len(lengths))) / len(lengths) * len(self.truth)).astype(int)
        found: dict[str, list[Quantiles]] = {}
        for name, ranks in self.told.items():
            tokens = np.quantile(lengths, ranks[lines])
            found[name] = [(p50, p90) for p50, p90 in tokens.tolist()]
        return found


def ranked(answers: Answers, quantiles: dict[str, Floats], best: str, seed: int) -> RankedErrors:
    """Errors of some predictors. quantiles: tokens at LEVELS, (prompts, levels) or (n, levels).

    best: whose predictions say where cut answers would have ended.
    """
    chance = np.random.default_rng(seed)
    limit = float(answers.lengths[answers.cut].min(initial=np.inf))
    told: dict[str, Floats] = {}
    middles: dict[str, Floats] = {}
    for name, rows in quantiles.items():
        whole = rows if len(rows) == len(answers.lengths) else rows[answers.prompts]
        scores = _lines(answers, whole, limit)
        told[name], middles[name] = ndtr(scores[:, TOLD]), scores[:, TOLD[0]]
    seen = ndtri(answers.rank(np.where(answers.cut, 1.0, answers.lengths)))
    reached = float(ndtri(1.0 - answers.cut.mean()))
    correlation = {name: _correlation(one, seen, answers.cut, reached) for name, one in middles.items()}
    truth = ndtr(seen)
    if answers.cut.any():
        mean, rho = correlation[best] * _normal(middles[best], chance), correlation[best]
        spread = np.sqrt(1.0 - rho**2)
        below = ndtr((reached - mean[answers.cut]) / spread)
        drawn = mean[answers.cut] + spread * ndtri(
            np.minimum(below + (1.0 - below) * chance.random(len(below)), 1.0 - 1e-9)
        )
        truth[answers.cut] = 1.0 - answers.cut.mean() * (1.0 - _evenly(drawn))
    order = np.argsort(truth, kind="stable")
    return RankedErrors(truth[order], {name: one[order] for name, one in told.items()}, correlation)


def _lines(answers: Answers, quantiles: Floats, limit: float) -> Floats:
    """Normal scores at LEVELS, (n, levels): as predicted below the limit, in a straight line behind it."""
    below = quantiles < limit - 0.5
    scores = ndtri(answers.rank(quantiles.ravel()).reshape(quantiles.shape))
    known = np.where(below, scores, 0.0)
    count = np.maximum(below.sum(axis=1), 1)
    at, of = (below * _SCORES).sum(axis=1) / count, known.sum(axis=1) / count
    around = np.where(below, _SCORES - at[:, None], 0.0)
    spread = (around**2).sum(axis=1)
    slope = np.where(spread > 0, (around * scores).sum(axis=1) / np.maximum(spread, 1e-9), np.nan)
    slope = np.maximum(np.where(np.isnan(slope), np.nanmedian(slope), slope), _LEAST_SLOPE)
    # Of whom nothing is below the limit: the lowest level is there.
    none = ~below.any(axis=1)
    at, of = np.where(none, _SCORES[0], at), np.where(none, ndtri(1.0 - answers.cut.mean()), of)
    lines = of[:, None] + slope[:, None] * (_SCORES - at[:, None])
    unseen = np.maximum(lines, ndtri(1.0 - answers.cut.mean()))
    return np.asarray(np.where(below, scores, unseen), dtype=np.float64)


def _evenly(values: Floats) -> Floats:
    """Their ranks among themselves, evenly over (0, 1)."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = (np.arange(len(values)) + 0.5) / len(values)
    return ranks


def _normal(values: Floats, chance: np.random.Generator) -> Floats:
    """Their normal scores; equal ones in a random order."""
    shuffled = chance.permutation(len(values))
    found = np.empty(len(values))
    found[shuffled] = _evenly(values[shuffled])
    return np.asarray(ndtri(found), dtype=np.float64)


def _correlation(told: Floats, seen: Floats, cut: NDArray[np.bool_], reached: float) -> float:
    """Of the Gaussian copula that makes what was seen likeliest."""
    scores = _normal(told, np.random.default_rng(0))

    def likelihood(rho: float) -> float:
        spread = np.sqrt(1.0 - rho**2)
        ended = ((seen - rho * scores) / spread)[~cut]
        going = ((reached - rho * scores) / spread)[cut]
        return float((-0.5 * ended**2 - np.log(spread)).sum() + log_ndtr(-going).sum())

    return float(max(_CORRELATIONS, key=likelihood))
