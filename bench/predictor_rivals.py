"""What the length model is measured against: each takes answers to learn from and answers to predict."""

from __future__ import annotations

from collections.abc import Sequence

import lightgbm
import numpy as np
from numpy.typing import NDArray

from predictor.training.answers import Answers
from predictor.training.words import best_strength, fit_words, held_out_scores
from tidepipe_common.lengths.recent import RecentLengths
from tidepipe_common.lengths.request import LEVELS, Observation
from tidepipe_common.lengths.survival import censored_quantiles

Floats = NDArray[np.float64]
Answered = Sequence[Observation]

TREES = {
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "num_threads": 1,
    "seed": 1,
    "verbosity": -1,
}


def lengths_of(answers: Answered) -> Floats:
    """(n,) tokens."""
    return np.array([float(one.output_tokens) for one in answers])


def limits_of(answers: Answered) -> Floats:
    """(n, 1) max_tokens."""
    return np.array([one.features.limit for one in answers])[:, None]


def running_quantile(train: Answered, test: Answered, levels: Sequence[float] = LEVELS) -> Floats:
    """The quantiles of the training answers for everyone (Kaplan-Meier)."""
    censored = np.array([one.censored for one in train], dtype=np.bool_)
    same = censored_quantiles(lengths_of(train), censored, levels)
    return np.minimum(np.tile(same, (len(test), 1)), limits_of(test))


def prompt_length(train: Answered, test: Answered) -> Floats:
    """Linear regression of log output on log prompt tokens, with the quantiles of its residuals."""

    def columns(answers: Answered) -> Floats:
        tokens = np.array([float(one.features.prompt_tokens or 1) for one in answers])
        return np.column_stack([np.log(tokens), np.ones(len(answers))])

    target = np.log1p(lengths_of(train))
    weights = np.linalg.lstsq(columns(train), target, rcond=None)[0]
    residuals = np.quantile(target - columns(train) @ weights, LEVELS)
    return np.minimum(np.expm1((columns(test) @ weights)[:, None] + residuals), limits_of(test))


def columns_of(train: Answered, test: Answered) -> tuple[Floats, Floats]:
    """The model's own columns (without the bin), the words' score included."""
    recent = RecentLengths()
    learnt, asked = Answers.of(train, recent), Answers.of(test, RecentLengths())
    chance = np.random.default_rng(1)
    known = learnt.words, learnt.target, learnt.weight
    strength = best_strength(*known, learnt.prompts, chance)
    own = learnt.rows[:, :-1].copy()
    own[:, -1] = held_out_scores(*known, learnt.prompts, strength, chance)
    theirs = asked.rows[:, :-1].copy()
    theirs[:, -1] = fit_words(*known, strength).of(asked.words)
    return own, theirs


def quantile_trees(train: Answered, test: Answered) -> Floats:
    """One LightGBM quantile regression per level on the same columns, sorted so that none cross."""
    own, theirs = columns_of(train, test)
    found = []
    for level in LEVELS:
        data = lightgbm.Dataset(own, lengths_of(train))
        booster = lightgbm.train({**TREES, "objective": "quantile", "alpha": level}, data, 120)
        found.append(booster.predict(theirs))
    return np.minimum(np.sort(np.stack(found, axis=1), axis=1), limits_of(test))


def bins_classifier(train: Answered, test: Answered) -> dict[str, float]:
    """The papers' predictor: which bin (split at P25, P50, P75, P99)? Accuracy, and that of guessing."""
    own, theirs = columns_of(train, test)
    edges = np.unique(np.quantile(lengths_of(train), (0.25, 0.5, 0.75, 0.99), method="inverted_cdf"))
    labels, truth = (np.searchsorted(edges, lengths_of(part)) for part in (train, test))
    classes = len(edges) + 1
    data = lightgbm.Dataset(own, labels)
    booster = lightgbm.train({**TREES, "objective": "multiclass", "num_class": classes}, data, 60)
    chosen = np.argmax(booster.predict(theirs), axis=1)
    majority = int(np.bincount(labels).argmax())
    return {
        "classifier": float((chosen == truth).mean()),
        "majority": float((truth == majority).mean()),
        "within_one_bin": float((abs(chosen - truth) <= 1).mean()),
    }
