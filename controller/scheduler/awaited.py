"""What waiting sequences have in common: the first of them computes it, the others will find it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many

from controller.scheduler.block_store import NOTHING_FOUND, Found
from controller.scheduler.sequence import Sequence


class AwaitedPrefixes:
    """Counts for each block key of waiting sequences how many of them have it.

    Sequences are admitted one after the other, and a block can be shared as soon as its step is dispatched:
    nothing is computed twice side by side. What this adds is that it is *known* beforehand what a line costs
    (Sequence.expected_cached), and that sequences with the same beginning can follow each other.
    """

    def __init__(self, block_size: int, find: Callable[[Many[bytes]], Found] | None = None) -> None:
        """find: which leading keys are in memory."""
        self._block_size = block_size
        self._find = find or (lambda keys: NOTHING_FOUND)
        self._waiting: dict[bytes, int] = {}

    def keys_of(self, sequence: Sequence) -> list[bytes]:
        """Keys of what could be found of it: its last token is always computed, to sample the next one."""
        if not sequence.prefix_root:
            return []
        most = (sequence.length - 1) // self._block_size
        return sequence.keys_until(most * self._block_size, self._block_size)[:most]

    def add(self, sequence: Sequence) -> None:
        """It waits. What is in memory, or what one that waits will compute, it is expected to find."""
        keys, waiting = self.keys_of(sequence), self._waiting
        found = self._find(keys).blocks
        while found < len(keys) and keys[found] in waiting:
            found += 1
        sequence.expected_cached = found * self._block_size
        for key in keys:
            waiting[key] = waiting.get(key, 0) + 1

    def remove(self, sequence: Sequence) -> None:
        """It does not wait any more."""
        waiting = self._waiting
        for key in self.keys_of(sequence):
            left = waiting[key] - 1
            if left:
                waiting[key] = left
            else:
                del waiting[key]

    def group(self, sequence: Sequence) -> tuple[bytes, int]:
        """The longest beginning that a waiting sequence has in common with another one, by its last key, and
        how many have it; empty and 1 if there is none."""
        keys, waiting = self.keys_of(sequence), self._waiting
        # Whoever has a key has all before it: the counts fall along the chain.
        shared = bisect_left(keys, True, key=lambda key: waiting.get(key, 0) < 2)
        return (keys[shared - 1], waiting[keys[shared - 1]]) if shared else (b"", 1)

    def side_by_side(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """The same, those with the same beginning behind the first of them; else in their order."""
        groups: dict[bytes, list[Sequence]] = {}
        for sequence in sequences:
            key, _ = self.group(sequence)
            groups.setdefault(key or sequence.sequence_id.encode(), []).append(sequence)
        return [sequence for group in groups.values() for sequence in group]
