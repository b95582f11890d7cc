"""What an answer counts when lengths are learned: its target, and its weight among answers to one prompt."""

from __future__ import annotations

import numpy as np

from predictor.training.bins import Flags, Indices
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.survival import censored_quantiles


def targets(lengths: Floats, censored: Flags) -> Floats:
    """Logarithms; an answer that was cut counts as the median of those that got further."""
    filled = lengths.copy()
    for cut in np.unique(lengths[censored]):
        below = float(np.mean(lengths <= cut))
        middle = censored_quantiles(lengths, censored, (0.5 * (1.0 + below),))[0]
        filled[censored & (lengths == cut)] = middle if np.isfinite(middle) else 1.5 * cut
    return np.asarray(np.log1p(filled), dtype=np.float64)


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
