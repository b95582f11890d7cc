"""Recent lengths of requests that share a client or a template, by the hash of it: running quantiles."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from tidepipe_common.lengths.request import Observation, RequestFeatures

MAX_KEYS = 4096
MEMORY = 32
"""Newest answers of a key that are kept: their lengths, nothing else."""
LEVELS = (0.25, 0.5, 0.9)
NUMBERS = ("p25", "p50", "p90", "count")
"""What is told of a key: quantiles of the logarithms of its newest lengths, and how many they are."""

_NONE = (math.nan,) * len(NUMBERS)


class _Key:
    """Lengths of one key, newest last, as logarithms; what is asked is reckoned when one comes."""

    __slots__ = ("lengths", "numbers")

    def __init__(self, lengths: Sequence[float] = ()) -> None:
        self.lengths = list(lengths[-MEMORY:])
        self.numbers = self._reckon() if lengths else _NONE

    def note(self, length: float) -> None:
        self.lengths = [*self.lengths, length][-MEMORY:]
        self.numbers = self._reckon()

    def _reckon(self) -> tuple[float, ...]:
        ordered = sorted(self.lengths)
        count = len(ordered)
        return (*(ordered[min(count - 1, int(level * count))] for level in LEVELS), float(count))


class RecentLengths:
    """The newest lengths of each key, bounded; the keys longest unused are forgotten."""

    def __init__(self, entries: Iterable[tuple[str, list[float]]] = ()) -> None:
        """entries: as `entries` gave them."""
        self._keys: OrderedDict[str, _Key] = OrderedDict((key, _Key(lengths)) for key, lengths in entries)

    def entries(self) -> list[tuple[str, list[float]]]:
        """(key, logarithms of its lengths), for storage."""
        return [(key, one.lengths) for key, one in self._keys.items()]

    def numbers(self, request: RequestFeatures) -> tuple[float, ...]:
        """NUMBERS of the request's template, and of its client; NaN for none."""
        return (*self._of(f"t{request.prompt.template}"), *self._of(f"c{request.prompt.client}"))

    def note(self, observation: Observation) -> None:
        """An answer ended. One that was cut counts as far as it got: it is a feature, not an estimate."""
        prompt = observation.features.prompt
        value = round(math.log1p(observation.output_tokens), 3)
        for kind, key in (("t", prompt.template), ("c", prompt.client)):
            if key:
                self._note(f"{kind}{key}", value)

    def _of(self, key: str) -> tuple[float, ...]:
        found = self._keys.get(key)
        return _NONE if found is None else found.numbers

    def _note(self, key: str, value: float) -> None:
        one = self._keys.pop(key, None) or _Key()
        one.note(value)
        self._keys[key] = one
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)
