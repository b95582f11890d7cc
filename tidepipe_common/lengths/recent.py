"""Recent lengths of requests that share a client or a template."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable

from tidepipe_common.lengths.request import Observation, RequestFeatures

MAX_KEYS = 4096
MEMORY = 50.0
"""Answers of a key that count: older ones fade."""


class RecentLengths:
    """Fading mean of the logarithm of the lengths, per key; the keys longest unused are forgotten."""

    def __init__(self, entries: Iterable[tuple[str, float, float]] = ()) -> None:
        """entries: as `entries` gave them."""
        self._means: OrderedDict[str, tuple[float, float]] = OrderedDict(
            (key, (mean, weight)) for key, mean, weight in entries
        )

    def entries(self) -> list[tuple[str, float, float]]:
        """(key, mean logarithm, answers that count), for storage."""
        return [(key, mean, weight) for key, (mean, weight) in self._means.items()]

    def numbers(self, request: RequestFeatures) -> tuple[float, float, float, float]:
        """Mean logarithm and count of the request's template, and of its client; NaN for none."""
        return (*self._of(f"t{request.prompt.template}"), *self._of(f"c{request.prompt.client}"))

    def note(self, observation: Observation) -> None:
        """An answer ended. One that was cut counts as far as it got: it is a feature, not an estimate."""
        prompt = observation.features.prompt
        value = math.log1p(observation.output_tokens)
        for kind, key in (("t", prompt.template), ("c", prompt.client)):
            if key:
                self._note(f"{kind}{key}", value)

    def _of(self, key: str) -> tuple[float, float]:
        mean, weight = self._means.get(key, (math.nan, math.nan))
        return mean, weight

    def _note(self, key: str, value: float) -> None:
        mean, weight = self._means.pop(key, (0.0, 0.0))
        weight = min(weight + 1.0, MEMORY)
        self._means[key] = (mean + (value - mean) / weight, weight)
        if len(self._means) > MAX_KEYS:
            self._means.popitem(last=False)
