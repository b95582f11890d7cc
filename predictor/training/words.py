"""Ridge regression of the logarithm of the length on the prompt's words: one column for the trees.

Words and pairs are counted by their rarity, and a prompt's together by their Euclidean length (tf-idf): what
nearly all prompts have says nothing, and long prompts have no more votes than short ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.linalg import lsqr

from predictor.training.bins import Indices
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.prompt import BUCKETS
from tidepipe_common.lengths.request import RequestFeatures

FOLDS = 5
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
ITERATIONS = 60
LEAST_PROMPTS = 50


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

    def rarity(self, weight: Floats) -> Floats:
        """(BUCKETS,) logarithm of how many prompts there are for one that has it. weight: of each row."""
        seen = np.asarray(self.table.T @ weight)
        return np.asarray(np.log((1.0 + weight.sum()) / (1.0 + seen)) + 1.0, dtype=np.float64)

    def counted(self, rarity: Floats) -> csr_matrix:
        """Rows of rarities, each of length 1."""
        rows = self.table @ diags_array(rarity)
        lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        return csr_matrix(diags_array(1.0 / np.maximum(lengths, 1e-9)) @ rows)


@dataclass(frozen=True, slots=True)
class WordScores:
    """A fitted regression. words: (BUCKETS,) weights times rarity."""

    words: Floats
    rarity: Floats
    mean: float

    def of(self, table: WordTable) -> Floats:
        """Predicted logarithm, (n,); NaN without text."""
        weights = self.words / self.rarity
        return np.where(table.has_text, table.counted(self.rarity) @ weights + self.mean, np.nan)


def fit_words(words: WordTable, target: Floats, weight: Floats, strength: float) -> WordScores:
    """target: (n,) logarithms of lengths. weight: of each row, (n,)."""
    if not words.has_text.any():
        return WordScores(np.zeros(BUCKETS), np.ones(BUCKETS), 0.0)
    known = WordTable(words.table[words.has_text], words.has_text[words.has_text])
    wanted, counts = target[words.has_text], weight[words.has_text]
    rarity = known.rarity(counts)
    mean = float(np.average(wanted, weights=counts))
    # Words that almost every prompt has would otherwise carry the mean.
    by_weight = diags_array(np.sqrt(counts)) @ known.counted(rarity)
    damp, seen = float(np.sqrt(strength)), np.sqrt(counts) * (wanted - mean)
    found = lsqr(by_weight, seen, damp=damp, iter_lim=ITERATIONS)[0]
    return WordScores(np.asarray(found * rarity, dtype=np.float64), rarity, mean)


def held_out_scores(
    words: WordTable,
    target: Floats,
    weight: Floats,
    prompts: Indices,
    strength: float,
    chance: np.random.Generator,
) -> Floats:
    """Each prompt's score from a regression that has not seen its lengths: what the trees may trust.

    prompts: (n,) which prompt a row is an answer to.
    """
    fold = folds(prompts, chance)
    scores = np.full(len(target), np.nan)
    for one in range(FOLDS):
        rest, held = np.flatnonzero(fold != one), np.flatnonzero(fold == one)
        scores[held] = fit_words(words.rows(rest), target[rest], weight[rest], strength).of(words.rows(held))
    return scores


def best_strength(
    words: WordTable, target: Floats, weight: Floats, prompts: Indices, chance: np.random.Generator
) -> float:
    """The regularization with the least squared error on held-out prompts."""
    if not words.has_text.any():
        return STRENGTHS[-1]

    def error(strength: float) -> float:
        scores = held_out_scores(words, target, weight, prompts, strength, chance)
        return float(np.nansum(weight * (scores - target) ** 2))

    return min(STRENGTHS, key=error)


def folds(prompts: Indices, chance: np.random.Generator) -> Indices:
    """(n,) a number below FOLDS: answers to one prompt are never on both sides.

    Unless there are fewer than LEAST_PROMPTS: then the next answers are to the same ones, and not to others.
    """
    if len(np.unique(prompts)) < LEAST_PROMPTS:
        return np.asarray(chance.permutation(len(prompts)) % FOLDS, dtype=np.int64)
    return np.asarray((chance.permutation(int(prompts.max(initial=0)) + 1) % FOLDS)[prompts], dtype=np.int64)
