"""Quality of the length model on answers it has not seen: against rivals, in sums, under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.predictor_rivals import (
    Floats,
    bins_classifier,
    lengths_of,
    limits_of,
    prompt_length,
    quantile_trees,
    running_quantile,
)
from controller.scheduler.expectation import LengthBelief
from predictor.evaluation.figures import figures, sum_error
from predictor.training.fit import fit
from tidepipe_common.lengths.prompt import DENSE
from tidepipe_common.lengths.request import LEVELS, Observation, RequestFeatures
from tidepipe_common.lengths.trained import TrainedLengths

TRAIN_SHARE = 0.7
GROUPS = (64, 256)
UNDER_WAY = (64, 128, 256)
MIDPOINTS = tuple((np.arange(50) + 0.5) / 50)
Answers = list[Observation]


def split(answers: Answers, seed: int) -> tuple[Answers, Answers]:
    """70 % to learn from, the rest to judge by."""
    order = np.random.default_rng(seed).permutation(len(answers))
    count = int(TRAIN_SHARE * len(answers))
    return [answers[int(i)] for i in order[:count]], [answers[int(i)] for i in order[count:]]


def measure(answers: Answers, seeds: int) -> dict[str, Any]:
    """Means over the splits."""
    runs = [one_split(*split(answers, seed), seed) for seed in range(seeds)]
    return {
        "splits": seeds,
        "mean": mean_of(runs),
        "least": extreme_of(runs, min),
        "most": extreme_of(runs, max),
    }


def one_split(train: Answers, test: Answers, seed: int) -> dict[str, Any]:
    """All figures of one split."""
    model = fit(train, "hazard/1").model
    requests = [one.features for one in test]
    calibrated = model.quantiles(requests)
    rivals = {
        "hazard + conformal": calibrated,
        "hazard": model.quantiles(requests, calibrated=False),
        "quantile regression trees": quantile_trees(train, test),
        "prompt length": prompt_length(train, test),
        "running quantile": running_quantile(train, test),
    }
    quality = {}
    for name, quantiles in rivals.items():
        row = figures(test, quantiles, LEVELS)
        quality[name] = {
            "pinball": row.pinball,
            "mae_tokens": row.mae_tokens,
            "p50": row.coverage["p50"],
            "p90": row.coverage["p90"],
            "p99": row.coverage["p99"],
        }
    return {
        "quality": quality,
        "sums": sums(model, train, test, seed),
        "bins": bins_classifier(train, test),
        "under_way": under_way(model, calibrated, test),
    }


def sums(model: TrainedLengths, train: Answers, test: Answers, seed: int) -> dict[str, dict[str, float]]:
    """Mean relative error of the sum over random groups of requests."""
    lengths = lengths_of(test)
    expected: dict[str, Floats] = {
        "hazard + conformal": model.quantiles([one.features for one in test], MIDPOINTS).mean(axis=1),
        "running quantile": running_quantile(train, test, MIDPOINTS).mean(axis=1),
    }
    return {
        name: {
            str(group): sum_error(lengths, means, group, np.random.default_rng(seed))
            for group in (1, *GROUPS)
        }
        for name, means in expected.items()
    }


def under_way(model: TrainedLengths, at_start: Floats, test: Answers) -> dict[str, dict[str, float]]:
    """MAE of the length of answers that have g tokens already: asked again, or told at the start."""
    found = {}
    for done in UNDER_WAY:
        chosen = np.flatnonzero(lengths_of(test) > done)
        running = [test[int(i)] for i in chosen]
        lengths, limits = lengths_of(running), limits_of(running)[:, 0]
        again = model.quantiles([replace(o.features, generated_tokens=done) for o in running], (0.5, 0.9))
        start = at_start[chosen]
        beliefs = [LengthBelief.from_quantiles(row[2], row[4]).remaining(done) + done for row in start]
        found[str(done)] = {
            "answers": float(len(running)),
            "asked again": float(np.abs(again[:, 0] - lengths).mean()),
            "asked again, p90": float((lengths <= again[:, 1]).mean()),
            "log-logistic through P50 and P90": float(np.abs(np.minimum(beliefs, limits) - lengths).mean()),
            "P50 of the start": float(np.abs(np.maximum(start[:, 2], done + 1) - lengths).mean()),
        }
    return found


def ablation(answers: Answers, sources: Sequence[str], seeds: int) -> dict[str, float]:
    """Pinball loss without a group of columns (mean over splits), and with one that production may add."""
    cues = [index for index, name in enumerate(DENSE) if name.startswith(("cue_", "says_", "asked_"))]

    def without_cues(one: RequestFeatures) -> RequestFeatures:
        dense = list(one.prompt.dense)
        for index in cues:
            dense[index] = 0.0
        return replace(one, prompt=replace(one.prompt, dense=tuple(dense)))

    def without_counts(one: RequestFeatures) -> RequestFeatures:
        dense = [value if index in cues else 0.0 for index, value in enumerate(one.prompt.dense)]
        return replace(one, prompt=replace(one.prompt, dense=tuple(dense)))

    changes: dict[str, Callable[[RequestFeatures], RequestFeatures]] = {
        "all": lambda one: one,
        "without words' score": lambda one: replace(one, prompt=replace(one.prompt, buckets=())),
        "without instruction cues": without_cues,
        "without counts and shares": without_counts,
        "without prompt tokens": lambda one: replace(one, prompt_tokens=None),
        "prompt tokens only": lambda one: RequestFeatures(one.prompt_tokens, one.max_tokens),
    }
    found = {
        name: _loss([_changed(one, change) for one in answers], seeds) for name, change in changes.items()
    }
    keys = {name: index + 1 for index, name in enumerate(sorted(set(sources)))}
    tagged = [
        _changed(one, lambda f, key=keys[source]: replace(f, prompt=replace(f.prompt, client=key)))  # type: ignore[misc]
        for one, source in zip(answers, sources, strict=True)
    ]
    return found | {"with the source as client": _loss(tagged, seeds)}


def _changed(one: Observation, change: Callable[[RequestFeatures], RequestFeatures]) -> Observation:
    return replace(one, features=change(one.features))


def _loss(answers: Answers, seeds: int) -> float:
    losses = []
    for seed in range(seeds):
        train, test = split(answers, seed)
        quantiles = fit(train, "hazard/1").model.quantiles([one.features for one in test])
        losses.append(figures(test, quantiles, LEVELS).pinball)
    return float(np.mean(losses))


def mean_of(runs: list[Any]) -> Any:
    """Of equal nestings of numbers."""
    return extreme_of(runs, lambda values: sum(values) / len(values))


def extreme_of(runs: list[Any], pick: Callable[[list[float]], float]) -> Any:
    """`pick` of the numbers at each place of equal nestings."""
    if isinstance(runs[0], dict):
        return {name: extreme_of([run[name] for run in runs], pick) for name in runs[0]}
    return pick(runs)
