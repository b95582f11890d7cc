"""Fits the length model: words' score, hazard trees, and a calibration on answers that they have not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import ConfigError
from common.lengths.booster import lightgbm
from common.lengths.distribution import Floats
from common.lengths.hazard import COLUMNS, HazardModel, request_rows, set_scores
from common.lengths.reached import ReachedLevels
from common.lengths.recent import RecentLengths
from common.lengths.request import Observation
from common.lengths.survival import censored_quantiles
from common.lengths.trained import TrainedLengths
from predictor.training.bins import (
    Flags,
    RiskTable,
    base_log_odds,
    choose_edges,
    risk_table,
    tail_rate,
)
from predictor.training.words import WordTable, best_strength, fit_words, held_out_scores

LEAST_ANSWERS = 50
MOST_ANSWERS = 20_000
"""The newest are used: more cost memory and bring little."""
FOLDS = 5
TREE_COUNTS = (10, 20, 40, 60, 80, 100)
_BIN = COLUMNS.index("bin")

Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the trees. threads: of LightGBM."""

    learning_rate: float = 0.08
    leaves: int = 8
    least_pairs: int = 60
    threads: int = 1
    seed: int = 1

    def parameters(self) -> dict[str, object]:
        """As LightGBM calls them."""
        return {
            "objective": "binary",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.least_pairs,
            "feature_fraction": 0.6,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "max_bin": 63,
            "num_threads": self.threads,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


@dataclass(frozen=True, slots=True)
class Answers:
    """Observations as arrays, in the order in which they came. lost: see Observation."""

    rows: Floats
    words: WordTable
    lengths: Floats
    censored: Flags
    lost: Flags
    target: Floats

    @classmethod
    def of(cls, observations: Sequence[Observation], recent: RecentLengths) -> Answers:
        """recent: empty; afterwards it knows all of them."""
        requests = [one.features for one in observations]
        history = []
        for one in observations:
            history.append(recent.numbers(one.features))
            recent.note(one)
        lengths = np.array([float(one.output_tokens) for one in observations])
        censored = np.array([one.censored for one in observations], dtype=np.bool_)
        return cls(
            request_rows(requests, history),
            WordTable.of(requests),
            lengths,
            censored,
            np.array([one.lost for one in observations], dtype=np.bool_),
            _targets(lengths, censored),
        )


def fit(
    observations: Sequence[Observation],
    version: str,
    settings: Settings | None = None,
    progress: Progress = lambda *_: None,
) -> TrainedLengths:
    """Train on observations, oldest first. ConfigError if there are too few, ModelError without LightGBM."""
    if len(observations) < LEAST_ANSWERS:
        raise ConfigError(
            f"{len(observations)} answers are too few to learn from; {LEAST_ANSWERS} are needed"
        )
    settings = settings or Settings()
    recent = RecentLengths()
    answers = Answers.of(observations[-MOST_ANSWERS:], recent)
    edges = choose_edges(answers.lengths, answers.censored)
    table = risk_table(edges, answers.lengths, answers.censored)
    chance = np.random.default_rng(settings.seed)
    steps = FOLDS + 2
    progress("words", 0, steps)
    strength = best_strength(answers.words, answers.target, chance)
    fold = chance.permutation(len(answers.lengths)) % FOLDS
    losses = np.zeros(len(TREE_COUNTS))
    models = []
    for one in range(FOLDS):
        progress(f"fold {one + 1} of {FOLDS}", 1 + one, steps)
        model = _fit_hazard(answers, fold != one, edges, table, strength, settings, max(TREE_COUNTS))
        models.append(model)
        losses += [
            _loss(model, answers, fold == one, table.of_answers(fold == one), count) for count in TREE_COUNTS
        ]
    trees = TREE_COUNTS[int(np.argmin(losses))]
    reached = np.empty(len(answers.lengths))
    for one, model in enumerate(models):
        held = fold == one
        distributions = model.of_rows(_scored(model, answers, held), trees)
        reached[held] = 1.0 - distributions.beyond(answers.lengths[held])
    progress("all answers", 1 + FOLDS, steps)
    hazard = _fit_hazard(answers, np.ones(len(fold), dtype=np.bool_), edges, table, strength, settings, trees)
    progress("done", steps, steps)
    return TrainedLengths(version, len(answers.lengths), hazard, ReachedLevels(reached, answers.lost), recent)


def _fit_hazard(
    answers: Answers,
    chosen: Flags,
    edges: Floats,
    table: RiskTable,
    strength: float,
    settings: Settings,
    trees: int,
) -> HazardModel:
    indices = np.flatnonzero(chosen)
    words, target = answers.words.rows(indices), answers.target[indices]
    weights, mean = fit_words(words, target, strength)
    rows = answers.rows.copy()
    scores = np.full(len(rows), np.nan)
    scores[indices] = held_out_scores(words, target, strength, np.random.default_rng(settings.seed))
    set_scores(rows, scores)
    part = table.of_answers(chosen)
    base = base_log_odds(part, len(edges) - 1)
    matrix = rows[part.answer].astype(np.float32)
    matrix[:, _BIN] = part.bin
    gbm = lightgbm()
    data = gbm.Dataset(
        matrix,
        part.ended,
        init_score=base[part.bin],
        feature_name=list(COLUMNS),
        params={"max_bin": 63, "verbosity": -1},
    )
    booster = gbm.train(settings.parameters(), data, trees)
    rate = tail_rate(edges, answers.lengths[indices], answers.censored[indices])
    return HazardModel(edges, base, rate, weights, mean, booster)


def _scored(model: HazardModel, answers: Answers, chosen: Flags) -> Floats:
    rows = answers.rows[chosen]
    set_scores(rows, answers.words.rows(np.flatnonzero(chosen)).scores(model.words, model.words_mean))
    return rows


def _loss(model: HazardModel, answers: Answers, held: Flags, pairs: RiskTable, trees: int) -> float:
    """Negative log-likelihood of the held-out answers."""
    survival = model.of_rows(_scored(model, answers, held), trees).survival
    place = np.cumsum(held) - 1
    row = place[pairs.answer]
    hazard = 1.0 - survival[row, pairs.bin + 1] / np.maximum(survival[row, pairs.bin], 1e-12)
    hazard = np.clip(hazard, 1e-6, 1.0 - 1e-6)
    return float(-(pairs.ended * np.log(hazard) + (1.0 - pairs.ended) * np.log1p(-hazard)).sum())


def _targets(lengths: Floats, censored: Flags) -> Floats:
    """Logarithms; answers that were cut count as the median of those that got further."""
    filled = lengths.copy()
    for cut in np.unique(lengths[censored]):
        below = float(np.mean(lengths <= cut))
        middle = censored_quantiles(lengths, censored, (0.5 * (1.0 + below),))[0]
        filled[censored & (lengths == cut)] = middle if np.isfinite(middle) else 1.5 * cut
    return np.asarray(np.log1p(filled), dtype=np.float64)
