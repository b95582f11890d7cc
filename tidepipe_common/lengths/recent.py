"""Recent lengths of requests that share a client or a template, by the hash of it: running quantiles.

Those of one owner, whose names they bear, are nobody else's: with a system message that many use one of them
could tell the predictor anything of the others' answers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.lengths.request import Observation, RequestFeatures
from tidepipe_common.lengths.shares import fair_newest

MAX_KEYS = 4096
SPARE_KEYS = 256
"""So many more are there at times: to see whose is to go takes as long for many as for one."""
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
    """The newest lengths of each key, bounded; the keys longest unused are forgotten, those first of which an
    owner has more than half of the room."""

    def __init__(self, entries: Iterable[tuple[str, list[float]]] = ()) -> None:
        """entries: as `entries` gave them."""
        self._keys: OrderedDict[str, _Key] = OrderedDict((key, _Key(lengths)) for key, lengths in entries)

    def entries(self) -> list[tuple[str, list[float]]]:
        """(key, logarithms of its lengths), for storage."""
        self._forget(MAX_KEYS)
        return [(key, one.lengths) for key, one in self._keys.items()]

    def numbers(self, request: RequestFeatures) -> tuple[float, ...]:
        """NUMBERS of the request's template, and of its client; NaN for none."""
        return tuple(number for key in _names(request.prompt) for number in self._of(key))

    def note(self, observation: Observation) -> None:
        """An answer ended. One that was cut counts as far as it got: it is a feature, not an estimate."""
        value = round(math.log1p(observation.output_tokens), 3)
        for key in _names(observation.features.prompt):
            if key:
                self._note(key, value)
        if len(self._keys) > MAX_KEYS + SPARE_KEYS:
            self._forget(MAX_KEYS)

    def _of(self, key: str) -> tuple[float, ...]:
        found = self._keys.get(key)
        return _NONE if found is None else found.numbers

    def _note(self, key: str, value: float) -> None:
        one = self._keys.pop(key, None) or _Key()
        one.note(value)
        self._keys[key] = one

    def _forget(self, most: int) -> None:
        if len(self._keys) > most:
            names = list(self._keys)
            owners = np.array([_owner(name) for name in names])
            self._keys = OrderedDict((names[at], self._keys[names[at]]) for at in fair_newest(owners, most))


def _names(prompt: PromptFeatures) -> tuple[str, str]:
    """Of template and client, in this order; empty for none."""
    whose = f"{prompt.owner}." if prompt.owner else ""
    return (
        f"{whose}t{prompt.template}" if prompt.template else "",
        f"{whose}c{prompt.client}" if prompt.client else "",
    )


def _owner(name: str) -> int:
    whose, dot, _ = name.partition(".")
    return int(whose) if dot and whose.isdecimal() else 0
