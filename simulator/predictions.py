"""Predictors of output lengths for simulations: perfect, noisy, none, or a trained one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tidepipe_common.errors import ConfigError
from tidepipe_common.lengths.prompt import prompt_features
from tidepipe_common.lengths.request import NO_PROMPT, RequestFeatures
from tidepipe_common.lengths.store import load_lengths
from tidepipe_common.lengths.trained import TrainedLengths
from workloads.mixes import SimRequest

Quantiles = tuple[float, float] | None
"""Median and 90th percentile, tokens; None: no prediction."""
Predict = Callable[[Sequence[SimRequest], int], list[Quantiles]]
"""(requests, seed) -> one prediction per request."""

_Z90 = 1.2815515655446004


def predictor(name: str) -> Predict:
    """`oracle`, `none`, `noise:X`: a log-normal error whose standard deviation is X (0.5: 1.65x off); or the
    folder of a model that `tidepipe predictor train` made."""
    if name == "oracle":
        return lambda requests, _: [(float(one.output_tokens), float(one.output_tokens)) for one in requests]
    if name == "none":
        return lambda requests, _: [None] * len(requests)
    kind, _, level = name.partition(":")
    try:
        sigma = float(level)
    except ValueError:
        sigma = -1.0
    if kind != "noise" and (folder := Path(name)).is_dir():
        return _trained(load_lengths(folder))
    if kind != "noise" or not 0.0 <= sigma <= 5.0:
        raise ConfigError(
            f"unknown predictor {name!r}; known: oracle, none, noise:X with X in [0, 5], or the folder of a "
            "model that `tidepipe predictor train` made"
        )
    return lambda requests, seed: _noisy(requests, sigma, seed)


def _noisy(requests: Sequence[SimRequest], sigma: float, seed: int) -> list[Quantiles]:
    """A predictor that knows its own uncertainty: the truth is log-normal around its median."""
    errors = np.random.default_rng(seed).normal(0.0, sigma, len(requests))
    medians = np.array([one.output_tokens for one in requests]) * np.exp(errors)
    spread = float(np.exp(_Z90 * sigma))
    return [(float(max(median, 1.0)), float(max(median, 1.0)) * spread) for median in medians]


def _trained(model: TrainedLengths) -> Predict:
    """What the live predictor would say: from the prompt's text if the workload has it, else from lengths."""

    def predict(requests: Sequence[SimRequest], seed: int) -> list[Quantiles]:
        features = [
            RequestFeatures(
                prompt_tokens=one.prompt_tokens,
                max_tokens=one.max_tokens or None,
                prompt=NO_PROMPT if one.text is None else prompt_features(one.text),
            )
            for one in requests
        ]
        return [(p50, p90) for p50, p90 in model.quantiles(features, (0.5, 0.9)).tolist()]

    return predict
