"""A discrete-time hazard model: the chance that an answer ends in this bin, given that it got there.

One ensemble of trees for all bins, the bin being one of its features. Answers that were cut take part in the
bins that they survived and in no other, which is all that is known of them; and survival up to any length is
at hand for answers that run already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidepipe_common.lengths.distribution import Floats, LengthDistributions
from tidepipe_common.lengths.prompt import DENSE
from tidepipe_common.lengths.recent import NUMBERS, RecentLengths
from tidepipe_common.lengths.request import RequestFeatures

COLUMNS = (
    *DENSE,
    "prompt_tokens",
    "max_tokens",
    "temperature",
    *(f"template_{name}" for name in NUMBERS),
    *(f"client_{name}" for name in NUMBERS),
    "words_score",
    "bin",
)
"""Names of the columns that the trees see."""

_SCORE, _BIN = COLUMNS.index("words_score"), COLUMNS.index("bin")
_MISSING = (math.nan,) * len(DENSE)


@dataclass(frozen=True, slots=True)
class HazardModel:
    """edges: (k + 1,) tokens, from 0. base: (k,) log-odds of ending in each bin, which the trees refine.

    words, rarity: (BUCKETS,) a ridge regression of the length's logarithm on words and pairs of words, each
    counted by its rarity, a prompt's together by their Euclidean length (tf-idf). Its score is one column:
    trees alone cannot learn thousands of rare words from thousands of answers. words are weights times
    rarity.
    tail_rate: hazard per token behind the last edge. booster: LightGBM's.
    """

    edges: Floats
    base: Floats
    tail_rate: float
    words: Floats
    rarity: Floats
    words_mean: float
    booster: Any

    def distributions(
        self, requests: Sequence[RequestFeatures], recent: RecentLengths
    ) -> LengthDistributions:
        """One distribution per request."""
        rows = request_rows(requests, [recent.numbers(one) for one in requests])
        rows[:, _SCORE] = self.scores(requests)
        return self.of_rows(rows)

    def scores(self, requests: Sequence[RequestFeatures]) -> Floats:
        """The words' score of each request, NaN without text."""
        return np.array(
            [self._score(list(one.prompt.buckets)) if one.prompt.dense else math.nan for one in requests]
        )

    def _score(self, buckets: list[int]) -> float:
        length = math.sqrt(float(np.square(self.rarity[buckets]).sum()))
        return self.words_mean + (float(self.words[buckets].sum()) / length if length else 0.0)

    def of_rows(self, rows: Floats, trees: int | None = None) -> LengthDistributions:
        """From complete rows, (n, columns); trees: so many of them only."""
        bins, count = len(self.base), len(rows)
        table = np.repeat(rows, bins, axis=0)
        table[:, _BIN] = np.tile(np.arange(bins), count)
        # One thread: the machine's cores belong to the stages.
        scores = self.booster.predict(table, raw_score=True, num_iteration=trees, num_threads=1)
        logits = np.asarray(scores, dtype=np.float64).reshape(count, bins) + self.base
        survival = np.ones((count, bins + 1))
        np.cumprod(1.0 / (1.0 + np.exp(np.clip(logits, -30.0, 30.0))), axis=1, out=survival[:, 1:])
        return LengthDistributions(self.edges, survival, self.tail_rate)


def request_rows(requests: Sequence[RequestFeatures], history: Sequence[tuple[float, ...]]) -> Floats:
    """(n, columns), without score and bin. history: of each request, RecentLengths.numbers."""
    rows = np.full((len(requests), len(COLUMNS)), math.nan)
    rows[:, :_SCORE] = [
        (
            *(one.prompt.dense or _MISSING),
            _log(one.prompt_tokens),
            _log(one.max_tokens),
            one.temperature,
            *numbers,
        )
        for one, numbers in zip(requests, history, strict=True)
    ]
    return rows


def set_scores(rows: Floats, scores: Floats) -> None:
    """Fill in the words' score."""
    rows[:, _SCORE] = scores


def bin_of(edges: Floats, lengths: Floats) -> NDArray[np.int64]:
    """Index of the bin (edge, next edge] of each length; those behind the last edge belong to the last."""
    return np.clip(np.searchsorted(edges, lengths, side="left") - 1, 0, len(edges) - 2).astype(np.int64)


def _log(tokens: int | None) -> float:
    return math.nan if tokens is None else math.log1p(tokens)
