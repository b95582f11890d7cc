"""Answers that were cut say "longer than": what becomes of models that take them at face value?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bench.predictor_quality import mean_of, split
from bench.predictor_rivals import quantile_trees, running_quantile
from predictor.evaluation.figures import figures
from predictor.training.fit import fit
from tidepipe_common.lengths.request import LEVELS, Observation

LIMITS = (64, 128, 192, 256)


def measure(answers: list[Observation], seeds: int) -> Any:
    """Half of the training answers are cut at a limit drawn from LIMITS; judged are answers with 512."""
    runs = []
    for seed in range(seeds):
        train, test = split(answers, seed)
        chance = np.random.default_rng(seed)
        short = [_cut(one, int(chance.choice(LIMITS))) if chance.integers(2) else one for one in train]
        requests = [one.features for one in test]
        rows = {
            "hazard + conformal": fit(short, "hazard/1").model.quantiles(requests),
            "quantile regression trees, lengths as seen": quantile_trees(short, test),
            "running quantile (Kaplan-Meier)": running_quantile(short, test),
        }
        run = {}
        for name, quantiles in rows.items():
            row = figures(test, quantiles, LEVELS)
            coverage = {level: row.coverage[level] for level in ("p50", "p90")}
            run[name] = {"pinball": row.pinball, "mae_tokens": row.mae_tokens, **coverage}
        runs.append(run)
    return {"splits": seeds, "mean": mean_of(runs)}


def _cut(one: Observation, limit: int) -> Observation:
    features = replace(one.features, max_tokens=limit)
    if one.output_tokens < limit:
        return replace(one, features=features)
    return Observation(features, limit, censored=True)
