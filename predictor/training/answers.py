"""Finished answers as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from predictor.training.bins import Flags, Indices
from predictor.training.words import WordTable
from tidepipe_common.lengths.calibration import Ends
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.hazard import request_rows
from tidepipe_common.lengths.recent import RecentLengths
from tidepipe_common.lengths.request import Observation, RequestFeatures
from tidepipe_common.lengths.survival import censored_quantiles


@dataclass(frozen=True, slots=True)
class Answers:
    """Observations in the order in which they came; all arrays (n,), rows (n, columns).

    target: logarithm of the length, for the words' regression. prompts: number of the prompt that each is an
    answer to: several answers to one are joined, as what is learned of a prompt must hold for others.
    weight: of each answer; those to one prompt say less of prompts the more they are alike.
    """

    rows: Floats
    words: WordTable
    lengths: Floats
    censored: Flags
    ends: Ends
    target: Floats
    prompts: Indices
    weight: Floats

    @classmethod
    def of(cls, observations: Sequence[Observation], recent: RecentLengths) -> Answers:
        """recent: empty; afterwards it knows all of them. Each row sees those before it only."""
        requests = [one.features for one in observations]
        history = []
        for one in observations:
            history.append(recent.numbers(one.features))
            recent.note(one)
        lengths = np.array([float(one.output_tokens) for one in observations])
        censored = np.array([one.censored for one in observations], dtype=np.bool_)
        target = targets(lengths, censored)
        prompts = _prompts(requests)
        return cls(
            rows=request_rows(requests, history),
            words=WordTable.of(requests),
            lengths=lengths,
            censored=censored,
            ends=Ends.of(observations),
            target=target,
            prompts=prompts,
            weight=weights(prompts, target),
        )


def targets(lengths: Floats, censored: Flags) -> Floats:
    """Logarithms; an answer that was cut counts as the median of those that got further."""
    filled = lengths.copy()
    for cut in np.unique(lengths[censored]):
        below = float(np.mean(lengths <= cut))
        middle = censored_quantiles(lengths, censored, (0.5 * (1.0 + below),))[0]
        filled[censored & (lengths == cut)] = middle if np.isfinite(middle) else 1.5 * cut
    return np.asarray(np.log1p(filled), dtype=np.float64)


def _prompts(requests: Sequence[RequestFeatures]) -> Indices:
    """Equal numbers for equal prompts; those without text are each of its own."""
    numbers: dict[object, int] = {}
    found = []
    for place, one in enumerate(requests):
        key = (one.prompt.dense, one.prompt.buckets, one.prompt.template) if one.prompt.dense else place
        found.append(numbers.setdefault(key, len(numbers)))
    return np.array(found, dtype=np.int64)


def weights(prompts: Indices, target: Floats) -> Floats:
    """1 / (1 + (m - 1) r) for each of m answers to a prompt, r the correlation of answers to one prompt.

    So weighs the mean of m draws whose variance is partly their prompt's own, which no further draw lessens
    (one-way analysis of variance). r is 1 where it cannot be told: then a prompt counts as one answer.
    """
    counts = np.bincount(prompts)[prompts].astype(np.float64)
    several = counts > 1
    if not several.any():
        return np.ones(len(prompts))
    sizes = np.bincount(prompts)
    means = np.bincount(prompts, weights=target) / np.maximum(sizes, 1)
    within = float(((target - means[prompts])[several] ** 2).sum()) / max(
        1.0, float(several.sum()) - float((sizes > 1).sum())
    )
    of_many = sizes > 1
    between = float(means[of_many].var(ddof=1)) if of_many.sum() > 1 else float("inf")
    between = max(0.0, between - within * float(np.mean(1.0 / sizes[of_many])))
    alike = between / (between + within) if np.isfinite(between) and between + within > 0.0 else 1.0
    return np.asarray(1.0 / (1.0 + (counts - 1.0) * alike), dtype=np.float64)
