"""Whose answers a bounded memory keeps: the newest, of one owner half at most while others fill the rest.

Everything that is learned of lengths is learned by all callers together. Without shares whoever asks most, or
wants to, would push out what the others taught: windows, samples, levels and recent lengths would be of that
one caller. An owner is an API key, as its user names are free to choose; 0 is all that come without a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tidepipe_common.lengths.request import Observation

Owners = NDArray[np.int64]
"""(n,) hashes of owners."""
_Thing = TypeVar("_Thing")


def owners_of(observations: Iterable[Observation]) -> Owners:
    """In their order."""
    return np.array([one.features.prompt.owner for one in observations], dtype=np.int64)


def fair_newest(owners: Owners, size: int) -> NDArray[np.int64]:
    """Places of at most `size` that stay, oldest first, of things whose owners are given oldest first.

    An owner's newest size / 2 go before what it has beyond that; of each kind the newest stay.
    """
    count = len(owners)
    places = np.arange(count)
    if count <= size:
        return places
    if owners.min() == owners.max():
        return places[count - size :]
    newest_first = owners[::-1]
    grouped = np.argsort(newest_first, kind="stable")
    _, first, sizes = np.unique(newest_first[grouped], return_index=True, return_counts=True)
    newer = np.empty(count, dtype=np.int64)
    newer[grouped] = places - np.repeat(first, sizes)
    within = (newer < max(1, size // 2))[::-1]
    return np.sort(np.lexsort((-places, ~within))[:size])


def left_by_change(owners: Owners, count: int) -> NDArray[np.int64]:
    """Places of those that tell of the present, oldest first, when the newest `count` have shown a change.

    If most of these are one owner's, it alone is known to have changed: what the others taught stays.
    """
    places = np.arange(len(owners))
    values, counts = np.unique(owners[-count:], return_counts=True)
    if not len(values) or 2 * counts.max() <= counts.sum():
        return places[-count:]
    own = owners == values[counts.argmax()]
    return np.sort(np.concatenate([places[~own], places[own][-count:]]))


class SharedMemory(Generic[_Thing]):
    """The newest things, oldest first, bounded and shared out among their owners (`fair_newest`)."""

    def __init__(self, size: int) -> None:
        """size: things at most."""
        self._size = size
        self._things: list[_Thing] = []
        self._owners: list[int] = []

    def __len__(self) -> int:
        return len(self._things)

    def __iter__(self) -> Iterator[_Thing]:
        return iter(self._things)

    def extend(self, things: Iterable[_Thing], owners: Iterable[int]) -> None:
        """Newer ones. owners: of each."""
        self._things.extend(things)
        self._owners.extend(owners)
        if len(self._things) > self._size:
            kept = fair_newest(np.array(self._owners, dtype=np.int64), self._size).tolist()
            self._things = [self._things[place] for place in kept]
            self._owners = [self._owners[place] for place in kept]
