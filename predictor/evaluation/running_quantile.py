"""The simplest useful model: the lengths of the newest answers, whatever the request looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tidepipe_common.lengths.request import LEVELS, LengthPrediction, Observation, RequestFeatures
from tidepipe_common.lengths.shares import Owners, fair_newest, left_by_change, owners_of
from tidepipe_common.lengths.survival import censored_quantiles
from tidepipe_common.settings.defaults import LEAST_WINDOW, WINDOW

PRIOR_MEDIAN_TOKENS = 130.0
PRIOR_SIGMA = 1.1
"""The prior is log-normal, close to published chat traces: half below 130 tokens, one in ten above 530."""


class RunningQuantile:
    """A LengthModel: windows of the newest observations, of whole outputs, and of what follows thoughts."""

    def __init__(self, window: int = WINDOW) -> None:
        """window: observations kept of each, at least LEAST_WINDOW."""
        if window < LEAST_WINDOW:
            raise ValueError(f"the window must hold at least {LEAST_WINDOW} observations, got {window}")
        self._whole, self._behind = _Window(window), _Window(window)

    @property
    def version(self) -> str:
        """Tells the prior from the estimate."""
        return "running-quantile/1" if self._whole.filled >= LEAST_WINDOW else "running-quantile/1-prior"

    @property
    def window(self) -> int:
        """Observations held now, of whole outputs."""
        return self._whole.filled

    def predict(self, requests: Sequence[RequestFeatures]) -> list[LengthPrediction]:
        """The same distribution for every request of a kind and an owner, clipped to its max_tokens."""
        return [self._of(request).predict([request])[0] for request in requests]

    def keep_newest(self, count: int) -> None:
        """Forget what the newest observations have shown to have changed."""
        self._whole.keep_newest(count)
        self._behind.keep_newest(count)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Put the observations in the place of the oldest ones."""
        for window in (self._whole, self._behind):
            window.observe([one for one in observations if self._of(one.features) is window])

    def _of(self, request: RequestFeatures) -> _Window:
        return self._behind if request.behind_thought else self._whole


class _Window:
    """Quantiles of a window of the newest observations, shared out among owners; a prior before there are
    enough.

    An owner that has enough of its own there is answered by them.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._lengths = np.zeros(0, dtype=np.int64)
        self._censored = np.zeros(0, dtype=np.bool_)
        self._owners: Owners = np.zeros(0, dtype=np.int64)
        self._whose: dict[int, NDArray[np.bool_]] = {}
        self._quantiles: dict[int | None, tuple[float, ...]] = {}

    @property
    def filled(self) -> int:
        """Observations held now."""
        return len(self._lengths)

    def predict(self, requests: Sequence[RequestFeatures]) -> list[LengthPrediction]:
        """The same distribution for every request of an owner, clipped to its max_tokens."""
        return [
            LengthPrediction(LEVELS, tuple(min(length, one.limit) for length in self._beyond(one)))
            for one in requests
        ]

    def keep_newest(self, count: int) -> None:
        """Forget what the newest observations have shown to have changed (`left_by_change`)."""
        self._keep(left_by_change(self._owners, max(count, LEAST_WINDOW)))

    def observe(self, observations: Sequence[Observation]) -> None:
        """Put the observations in the place of the oldest ones."""
        if not observations:
            return
        self._lengths = np.append(self._lengths, [one.output_tokens for one in observations])
        self._censored = np.append(self._censored, [one.censored for one in observations])
        self._owners = np.append(self._owners, owners_of(observations))
        self._keep(fair_newest(self._owners, self._window))

    def _keep(self, places: NDArray[np.int64]) -> None:
        self._lengths, self._censored = self._lengths[places], self._censored[places]
        self._owners = self._owners[places]
        owners, counts = np.unique(self._owners, return_counts=True)
        enough = owners[counts >= LEAST_WINDOW].tolist() if len(owners) > 1 else []
        self._whose = {owner: self._owners == owner for owner in enough}
        self._quantiles = {}

    def _beyond(self, request: RequestFeatures) -> tuple[float, ...]:
        """Quantiles of the lengths above what it has generated."""
        owner, generated = request.prompt.owner, request.generated_tokens
        if self.filled < LEAST_WINDOW:
            quantiles, longer = prior_quantiles(), np.zeros(0, dtype=np.bool_)
        else:
            own = self._whose.get(owner, np.ones(self.filled, dtype=np.bool_))
            whose = owner if owner in self._whose else None
            if whose not in self._quantiles:
                self._quantiles[whose] = self._quantiles_of(own)
            quantiles, longer = self._quantiles[whose], own & (self._lengths > generated)
        if generated <= 0:
            return quantiles
        if np.count_nonzero(longer) < LEAST_WINDOW:
            # Whoever outlived nearly all: long answers tend to stay long.
            return tuple(max(length, 1.5 * generated) for length in quantiles)
        return self._quantiles_of(longer)

    def _quantiles_of(self, chosen: NDArray[np.bool_]) -> tuple[float, ...]:
        return tuple(censored_quantiles(self._lengths[chosen], self._censored[chosen], LEVELS).tolist())


@cache
def prior_quantiles() -> tuple[float, ...]:
    """What is predicted before there are enough observations."""
    normal = NormalDist(math.log(PRIOR_MEDIAN_TOKENS), PRIOR_SIGMA)
    return tuple(math.exp(normal.inv_cdf(level)) for level in LEVELS)
