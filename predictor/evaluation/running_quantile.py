"""The simplest useful model: the lengths of the newest answers, whatever the request looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from tidepipe_common.lengths.request import LEVELS, LengthPrediction, Observation, RequestFeatures
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
        """The same distribution for every request of a kind, clipped to its max_tokens."""
        return [self._of(request).predict([request])[0] for request in requests]

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest observations: the world has changed."""
        self._whole.keep_newest(count)
        self._behind.keep_newest(count)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Put the observations in the place of the oldest ones."""
        for window in (self._whole, self._behind):
            window.observe([one for one in observations if self._of(one.features) is window])

    def _of(self, request: RequestFeatures) -> _Window:
        return self._behind if request.behind_thought else self._whole


class _Window:
    """Quantiles of a window of the newest observations; a prior before there are enough."""

    def __init__(self, window: int = WINDOW) -> None:
        self._lengths = np.zeros(window, dtype=np.int64)
        self._censored = np.zeros(window, dtype=np.bool_)
        self._next = 0
        self.filled = 0
        self._quantiles: tuple[float, ...] | None = prior_quantiles()

    def predict(self, requests: Sequence[RequestFeatures]) -> list[LengthPrediction]:
        """The same distribution for every request, clipped to its max_tokens."""
        if self._quantiles is None:
            held = slice(self.filled)
            self._quantiles = tuple(
                censored_quantiles(self._lengths[held], self._censored[held], LEVELS).tolist()
            )
        return [
            LengthPrediction(
                LEVELS, tuple(min(length, request.limit) for length in self._beyond(request.generated_tokens))
            )
            for request in requests
        ]

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest observations: the world has changed."""
        kept = min(max(count, LEAST_WINDOW), self.filled)
        newest = (self._next - kept + np.arange(kept)) % len(self._lengths)
        self._lengths[:kept], self._censored[:kept] = self._lengths[newest], self._censored[newest]
        self._next, self.filled = kept % len(self._lengths), kept
        if self.filled >= LEAST_WINDOW:
            self._quantiles = None

    def observe(self, observations: Sequence[Observation]) -> None:
        """Put the observations in the place of the oldest ones."""
        for observation in observations:
            self._lengths[self._next] = observation.output_tokens
            self._censored[self._next] = observation.censored
            self._next = (self._next + 1) % len(self._lengths)
            self.filled = min(self.filled + 1, len(self._lengths))
        if observations and self.filled >= LEAST_WINDOW:
            self._quantiles = None

    def _beyond(self, generated: int) -> tuple[float, ...]:
        """Quantiles of the lengths above `generated` tokens."""
        assert self._quantiles is not None
        if generated <= 0:
            return self._quantiles
        longer = self._lengths[: self.filled] > generated
        if np.count_nonzero(longer) < LEAST_WINDOW:
            # Whoever outlived nearly all: long answers tend to stay long.
            return tuple(max(length, 1.5 * generated) for length in self._quantiles)
        lengths, censored = self._lengths[: self.filled][longer], self._censored[: self.filled][longer]
        return tuple(censored_quantiles(lengths, censored, LEVELS).tolist())


def prior_quantiles() -> tuple[float, ...]:
    """What is predicted before there are enough observations."""
    normal = NormalDist(math.log(PRIOR_MEDIAN_TOKENS), PRIOR_SIGMA)
    return tuple(math.exp(normal.inv_cdf(level)) for level in LEVELS)
