"""Fits a head: its strength by cross-validation over prompts, whose folds calibrate it; then all answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictor.evaluation.signal_head import SignalHead
from predictor.training.bins import (
    Flags,
    RiskTable,
    base_log_odds,
    choose_edges,
    risk_table,
    tail_rate,
)
from predictor.training.head_samples import HeadSamples
from predictor.training.words import FOLDS, folds
from tidepipe_common.errors import ConfigError
from tidepipe_common.lengths.calibration import Ends, ReachedLevels
from tidepipe_common.lengths.distribution import Floats

LEAST_ANSWERS = 100
LEAST_PROMPTS = 50
STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
MOST_ITERATIONS, TOLERANCE = 30, 1e-6
"""Of Newton's method, which halves steps that go too far: some four are enough, but for what is told apart
exactly."""


@dataclass(frozen=True, slots=True)
class _Fit:
    base: Floats
    weights: Floats


def fit_head(samples: HeadSamples, version: str, seed: int = 1) -> SignalHead:
    """ConfigError if they are too few."""
    count = len(samples.lengths)
    if count < LEAST_ANSWERS:
        raise ConfigError(f"{count} answers with signals are too few; the least is {LEAST_ANSWERS}")
    edges = choose_edges(samples.lengths, samples.censored)
    table = risk_table(edges, samples.lengths, samples.censored)
    mean = np.average(samples.columns, axis=0, weights=samples.weight)
    scale = np.sqrt(np.average((samples.columns - mean) ** 2, axis=0, weights=samples.weight))
    # A column that never changes tells nothing.
    scale = np.where(scale > 1e-6, scale, 1e6)
    standard = (samples.columns - mean) / scale
    # What is learned of a prompt must hold for others; where there are hardly any, for its next answers.
    alone = len(np.unique(samples.prompts)) < LEAST_PROMPTS
    fold = folds(np.arange(count) if alone else samples.prompts, np.random.default_rng(seed))
    rate = tail_rate(edges, samples.lengths, samples.censored)

    def head(fitted: _Fit, calibration: ReachedLevels) -> SignalHead:
        return SignalHead(version, count, edges, fitted.base, rate, mean, scale, fitted.weights, calibration)

    best: tuple[float, float, Floats] | None = None
    nothing = ReachedLevels(np.empty(0), Ends.of([]))
    for strength in STRENGTHS:
        loss, reached = 0.0, np.empty(count)
        for one in range(FOLDS):
            held = fold == one
            fitted = _fit(standard, table, ~held, samples.weight, edges, strength)
            loss += _loss(fitted, standard, table, held, samples.weight)
            known = head(fitted, nothing).distributions(samples.columns[held])
            reached[held] = 1.0 - known.beyond(samples.lengths[held])
        if best is None or loss < best[0]:
            best = loss, strength, reached
    assert best is not None
    everyone = np.ones(count, dtype=np.bool_)
    fitted = _fit(standard, table, everyone, samples.weight, edges, best[1])
    return head(fitted, ReachedLevels(best[2], samples.ends))


def _fit(
    columns: Floats, table: RiskTable, chosen: Flags, weight: Floats, edges: Floats, strength: float
) -> _Fit:
    """Newton's method on the penalised likelihood of the bins' log-odds and the weights together."""
    bins = len(edges) - 1
    part = table.of_answers(chosen)
    shape = (len(columns), bins)
    risk, ended = np.zeros(shape), np.zeros(shape)
    risk[part.answer, part.bin] = weight[part.answer]
    ended[part.answer, part.bin] = part.ended * weight[part.answer]
    rows, risk, ended = columns[chosen], risk[chosen], ended[chosen]
    base, weights = base_log_odds(part, bins), np.zeros(columns.shape[1])
    penalty = strength * np.eye(columns.shape[1])

    def cost(base: Floats, weights: Floats) -> float:
        logits = base + (rows @ weights)[:, None]
        likelihood = (risk * np.logaddexp(0.0, logits) - ended * logits).sum()
        return float(likelihood + 0.5 * strength * weights @ weights)

    now = cost(base, weights)
    for _ in range(MOST_ITERATIONS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(base + (rows @ weights)[:, None], -30.0, 30.0)))
        error, curve = ended - risk * chance, risk * chance * (1.0 - chance)
        # Bins that are certain by now would have no curvature at all.
        of_base = curve.sum(axis=0) + 1e-3
        mixed = curve.T @ rows
        of_weights = rows.T @ (rows * curve.sum(axis=1)[:, None]) + penalty
        to_base = error.sum(axis=0)
        to_weights = rows.T @ error.sum(axis=1) - strength * weights
        # The bins' block is diagonal: eliminated first.
        reduced = of_weights - mixed.T @ (mixed / of_base[:, None])
        step = np.linalg.solve(reduced, to_weights - mixed.T @ (to_base / of_base))
        base_step = (to_base - mixed @ step) / of_base
        before, share = now, 1.0
        while share > 1e-3:
            now = cost(base + share * base_step, weights + share * step)
            if now < before:
                base, weights = base + share * base_step, weights + share * step
                break
            share /= 2.0
        if now > before - TOLERANCE * max(1.0, abs(before)):
            break
    return _Fit(base, weights)


def _loss(fitted: _Fit, columns: Floats, table: RiskTable, chosen: Flags, weight: Floats) -> float:
    """Negative log-likelihood of some answers."""
    part = table.of_answers(chosen)
    logits = fitted.base[part.bin] + columns[part.answer] @ fitted.weights
    return float((weight[part.answer] * (np.logaddexp(0.0, logits) - part.ended * logits)).sum())
