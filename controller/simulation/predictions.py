"""Predictors of output lengths for simulations: perfect, noisy, none, or the median of a trained one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from common.errors import ConfigError
from controller.simulation.workload import SimRequest

Quantiles = tuple[float, float] | None
"""Median and 90th percentile, tokens; None: no prediction."""
Predict = Callable[[Sequence[SimRequest], int], list[Quantiles]]
"""(requests, seed) -> one prediction per request."""

_Z90 = 1.2815515655446004


def predictor(name: str) -> Predict:
    """`oracle`, `none`, or `noise:X`: a log-normal error whose standard deviation is X (0.5: 1.65x off)."""
    if name == "oracle":
        return lambda requests, _: [(float(one.output_tokens), float(one.output_tokens)) for one in requests]
    if name == "none":
        return lambda requests, _: [None] * len(requests)
    kind, _, level = name.partition(":")
    try:
        sigma = float(level)
    except ValueError:
        sigma = -1.0
    if kind != "noise" or not 0.0 <= sigma <= 5.0:
        raise ConfigError(f"unknown predictor {name!r}; known: oracle, none, noise:X with X in [0, 5]")
    return lambda requests, seed: _noisy(requests, sigma, seed)


def _noisy(requests: Sequence[SimRequest], sigma: float, seed: int) -> list[Quantiles]:
    """A predictor that knows its own uncertainty: the truth is log-normal around its median."""
    errors = np.random.default_rng(seed).normal(0.0, sigma, len(requests))
    medians = np.array([one.output_tokens for one in requests]) * np.exp(errors)
    spread = float(np.exp(_Z90 * sigma))
    return [(float(max(median, 1.0)), float(max(median, 1.0)) * spread) for median in medians]
