"""Fits the length model: how many trees, by cross-validation, whose folds calibrate it; then all answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from predictor.training.answers import Answers
from predictor.training.bins import Indices, choose_edges, risk_table
from predictor.training.trees import Settings, fit_hazard, loss, scored_rows
from predictor.training.words import FOLDS, best_strength, folds
from tidepipe_common.errors import ConfigError
from tidepipe_common.lengths.calibration import ReachedLevels
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.hazard import HazardModel
from tidepipe_common.lengths.recent import RecentLengths
from tidepipe_common.lengths.request import LEVELS, Observation
from tidepipe_common.lengths.trained import TrainedLengths
from tidepipe_common.settings.defaults import LEAST_ANSWERS

MOST_ANSWERS = 20_000
"""The newest are used: more cost memory and bring little."""
TREE_COUNTS = (10, 20, 40, 60, 80, 100)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model, and what its like predicted of answers that they had not seen: (n, LEVELS) tokens.

    held_out: calibrated, at most max_tokens; held_out_raw: before calibration. prompts: (n,) number of the
    prompt that each is an answer to.
    """

    model: TrainedLengths
    held_out: Floats
    held_out_raw: Floats
    prompts: Indices


Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


def fit(
    observations: Sequence[Observation],
    version: str,
    settings: Settings | None = None,
    progress: Progress = lambda *_: None,
) -> Fitted:
    """Train on observations, oldest first. ConfigError if there are too few, ModelError without LightGBM."""
    if len(observations) < LEAST_ANSWERS:
        raise ConfigError(f"{len(observations)} answers are too few; the least is {LEAST_ANSWERS}")
    settings = settings or Settings()
    recent = RecentLengths()
    answers = Answers.of(observations[-MOST_ANSWERS:], recent)
    edges = choose_edges(answers.lengths, answers.censored)
    table = risk_table(edges, answers.lengths, answers.censored)
    chance = np.random.default_rng(settings.seed)
    steps = FOLDS + 2
    progress("words", 0, steps)
    strength = best_strength(answers.words, answers.target, answers.weight, answers.prompts, chance)
    fold = folds(answers.prompts, chance)
    losses = np.zeros(len(TREE_COUNTS))
    models = []
    for one in range(FOLDS):
        progress(f"fold {one + 1} of {FOLDS}", 1 + one, steps)
        model = fit_hazard(answers, fold != one, edges, table, strength, settings, max(TREE_COUNTS))
        models.append(model)
        losses += [loss(model, answers, fold == one, table, count) for count in TREE_COUNTS]
    trees = TREE_COUNTS[int(np.argmin(losses))]
    calibration = ReachedLevels(_reached(answers, models, fold, trees), answers.ends)
    asked = calibration.asked(LEVELS, answers.ends.limits, answers.ends.owners)
    progress("all answers", 1 + FOLDS, steps)
    everyone = np.ones(len(fold), dtype=np.bool_)
    hazard = fit_hazard(answers, everyone, edges, table, strength, settings, trees)
    progress("done", steps, steps)
    return Fitted(
        TrainedLengths(version, len(fold), hazard, calibration, recent),
        _held_out(answers, models, fold, trees, asked),
        _held_out(answers, models, fold, trees, np.tile(LEVELS, (len(fold), 1))),
        answers.prompts,
    )


def _reached(answers: Answers, models: Sequence[HazardModel], fold: Indices, trees: int) -> Floats:
    """The level that each answer reached in what the model without its fold says of it."""
    reached = np.empty(len(fold))
    for one, model in enumerate(models):
        held = fold == one
        distributions = model.of_rows(scored_rows(model, answers, held), trees)
        reached[held] = 1.0 - distributions.beyond(answers.lengths[held])
    return reached


def _held_out(
    answers: Answers, models: Sequence[HazardModel], fold: Indices, trees: int, levels: Floats
) -> Floats:
    quantiles = np.empty(levels.shape)
    for one, model in enumerate(models):
        held = fold == one
        quantiles[held] = model.of_rows(scored_rows(model, answers, held), trees).quantiles(levels[held])
    return np.asarray(np.minimum(quantiles, answers.ends.limits[:, None]), dtype=np.float64)
