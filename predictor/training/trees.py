"""One hazard model from one set of answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictor.training.answers import Answers
from predictor.training.bins import Flags, RiskTable, base_log_odds, tail_rate
from predictor.training.words import WordScores, fit_words, held_out_scores
from tidepipe_common.lengths.booster import lightgbm
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.hazard import COLUMNS, HazardModel, set_scores

_BIN = COLUMNS.index("bin")
_MAX_BIN = 63
_MOST_ALIKE = 4.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the trees. threads: of LightGBM."""

    learning_rate: float = 0.08
    leaves: int = 8
    least_pairs: int = 60
    threads: int = 1
    seed: int = 1

    def parameters(self, answers_per_prompt: float) -> dict[str, object]:
        """As LightGBM calls them. Answers to one prompt are alike, so a leaf must have more of them, within
        bounds: prompts that come hundreds of times may have leaves of their own."""
        return {
            "objective": "binary",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": int(self.least_pairs * min(answers_per_prompt, _MOST_ALIKE)),
            "feature_fraction": 0.6,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "max_bin": _MAX_BIN,
            "num_threads": self.threads,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


def fit_hazard(
    answers: Answers,
    chosen: Flags,
    edges: Floats,
    table: RiskTable,
    strength: float,
    settings: Settings,
    trees: int,
) -> HazardModel:
    """From the answers that are chosen. strength: regularization of the words' regression."""
    indices = np.flatnonzero(chosen)
    words, target = answers.words.rows(indices), answers.target[indices]
    weight, prompts = answers.weight[indices], answers.prompts[indices]
    fitted = fit_words(words, target, weight, strength)
    rows = answers.rows.copy()
    # The trees must learn how far the score can be trusted on prompts that the regression did not see.
    scores = np.full(len(rows), np.nan)
    chance = np.random.default_rng(settings.seed)
    scores[indices] = held_out_scores(words, target, weight, prompts, strength, chance)
    set_scores(rows, scores)
    part = table.of_answers(chosen)
    base = base_log_odds(part, len(edges) - 1)
    matrix = rows[part.answer].astype(np.float32)
    matrix[:, _BIN] = part.bin
    gbm = lightgbm()
    data = gbm.Dataset(
        matrix,
        part.ended,
        weight=answers.weight[part.answer],
        init_score=base[part.bin],
        feature_name=list(COLUMNS),
        params={"max_bin": _MAX_BIN, "verbosity": -1},
    )
    answers_per_prompt = len(indices) / max(1, len(np.unique(prompts)))
    booster = gbm.train(settings.parameters(answers_per_prompt), data, trees)
    rate = tail_rate(edges, answers.lengths[indices], answers.censored[indices])
    return HazardModel(edges, base, rate, fitted.words, fitted.rarity, fitted.mean, booster)


def scored_rows(model: HazardModel, answers: Answers, chosen: Flags) -> Floats:
    """Complete rows of some answers, as the model sees them."""
    rows = answers.rows[chosen]
    scores = WordScores(model.words, model.rarity, model.words_mean)
    set_scores(rows, scores.of(answers.words.rows(np.flatnonzero(chosen))))
    return rows


def loss(model: HazardModel, answers: Answers, chosen: Flags, table: RiskTable, trees: int) -> float:
    """Negative log-likelihood of some answers, with so many of the trees."""
    survival = model.of_rows(scored_rows(model, answers, chosen), trees).survival
    pairs = table.of_answers(chosen)
    row = (np.cumsum(chosen) - 1)[pairs.answer]
    hazard = 1.0 - survival[row, pairs.bin + 1] / np.maximum(survival[row, pairs.bin], 1e-12)
    hazard = np.clip(hazard, 1e-6, 1.0 - 1e-6)
    return float(-(pairs.ended * np.log(hazard) + (1.0 - pairs.ended) * np.log1p(-hazard)).sum())
