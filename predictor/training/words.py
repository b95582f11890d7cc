"""Ridge regression of the logarithm of the length on the prompt's words: one column for the trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsqr

from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.prompt import BUCKETS
from tidepipe_common.lengths.request import RequestFeatures

FOLDS = 5
STRENGTHS = (30.0, 100.0, 300.0, 1000.0)
ITERATIONS = 60


@dataclass(frozen=True, slots=True)
class WordTable:
    """Which prompt has which hash bucket. has_text: (n,), False for prompts of token ids."""

    table: csr_matrix
    has_text: NDArray[np.bool_]

    @classmethod
    def of(cls, requests: Sequence[RequestFeatures]) -> WordTable:
        """(n, BUCKETS), ones and zeros."""
        counts = [len(one.prompt.buckets) for one in requests]
        columns = np.fromiter((b for one in requests for b in one.prompt.buckets), dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        table = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(requests), BUCKETS))
        return cls(table, np.array([bool(one.prompt.dense) for one in requests], dtype=np.bool_))

    def rows(self, chosen: NDArray[np.int64]) -> WordTable:
        """Some of the prompts."""
        return WordTable(self.table[chosen], self.has_text[chosen])

    def scores(self, weights: Floats, mean: float) -> Floats:
        """Predicted logarithm; NaN without text."""
        return np.where(self.has_text, self.table @ weights + mean, np.nan)


def fit_words(words: WordTable, target: Floats, strength: float) -> tuple[Floats, float]:
    """Weights and mean. target: (n,) logarithms of lengths."""
    if not words.has_text.any():
        return np.zeros(BUCKETS), 0.0
    table, wanted = words.table[words.has_text], target[words.has_text]
    mean = float(wanted.mean())
    # Words that almost every prompt has would otherwise carry the mean.
    found = lsqr(table, wanted - mean, damp=float(np.sqrt(strength)), iter_lim=ITERATIONS)[0]
    return np.asarray(found, dtype=np.float64), mean


def held_out_scores(words: WordTable, target: Floats, strength: float, chance: np.random.Generator) -> Floats:
    """Each prompt's score from a regression that has not seen its length: what the trees may trust."""
    count = len(target)
    fold = chance.permutation(count) % FOLDS
    scores = np.full(count, np.nan)
    for one in range(FOLDS):
        rest, held = np.flatnonzero(fold != one), np.flatnonzero(fold == one)
        weights, mean = fit_words(words.rows(rest), target[rest], strength)
        scores[held] = words.rows(held).scores(weights, mean)
    return scores


def best_strength(words: WordTable, target: Floats, chance: np.random.Generator) -> float:
    """The regularization with the least squared error on held-out prompts."""
    if not words.has_text.any():
        return STRENGTHS[-1]

    def error(strength: float) -> float:
        scores = held_out_scores(words, target, strength, chance)
        return float(np.nanmean((scores - target) ** 2))

    return min(STRENGTHS, key=error)
