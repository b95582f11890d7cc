"""The prefixes that waiting sequences share: the first of them computes one, the others will find it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many

from controller.scheduler.block_store import Found
from controller.scheduler.sequence import Sequence


class AwaitedKeys:
    """Counts for each block key of waiting prompts how many of them have it; live and in virtual time."""

    def __init__(self, find: Callable[[Many[bytes]], Found]) -> None:
        """find: which leading keys are in memory."""
        self._find = find
        self._waiting: dict[bytes, int] = {}

    def add(self, keys: Many[bytes]) -> int:
        """A prompt waits. How many of its blocks it will find: what is in memory, or what another one that
        waits will compute."""
        waiting = self._waiting
        found = self._find(keys).blocks
        while found < len(keys) and keys[found] in waiting:
            found += 1
        for key in keys:
            waiting[key] = waiting.get(key, 0) + 1
        return found

    def remove(self, keys: Many[bytes]) -> None:
        """It does not wait any more."""
        waiting = self._waiting
        for key in keys:
            left = waiting[key] - 1
            if left:
                waiting[key] = left
            else:
                del waiting[key]

    def group(self, keys: Many[bytes]) -> tuple[bytes, int]:
        """The longest beginning that a waiting prompt has in common with another one: its last key, and how
        many have it; empty and 1 if there is none."""
        waiting = self._waiting
        # Whoever has a key has all before it: the counts fall along the chain.
        shared = bisect_left(keys, True, key=lambda key: waiting.get(key, 0) < 2)
        return (keys[shared - 1], waiting[keys[shared - 1]]) if shared else (b"", 1)


class AwaitedPrefixes:
    """The beginnings of a scheduler's waiting sequences.

    Sequences are admitted one after the other, and a block can be shared as soon as its step is dispatched:
    nothing is computed twice side by side. What this adds is that it is *known* beforehand what a line costs
    (Sequence.expected_cached), and that sequences with the same beginning can follow each other.
    """

    def __init__(self, block_size: int, find: Callable[[Many[bytes]], Found]) -> None:
        """find: which leading keys are in memory."""
        self._block_size = block_size
        self._awaited = AwaitedKeys(find)

    def keys_of(self, sequence: Sequence) -> list[bytes]:
        """Keys of what could be found of it: its last token is always computed, to sample the next one."""
        if not sequence.prefix_root:
            return []
        most = (sequence.length - 1) // self._block_size
        return sequence.keys_until(most * self._block_size, self._block_size)[:most]

    def add(self, sequence: Sequence) -> None:
        """It waits."""
        sequence.expected_cached = self._awaited.add(self.keys_of(sequence)) * self._block_size

    def remove(self, sequence: Sequence) -> None:
        """It does not wait any more."""
        self._awaited.remove(self.keys_of(sequence))

    def group(self, sequence: Sequence) -> tuple[bytes, int]:
        """See AwaitedKeys."""
        return self._awaited.group(self.keys_of(sequence))

    def side_by_side(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """The same, those with the same beginning behind the first of them; else in their order."""
        groups: dict[bytes, list[Sequence]] = {}
        for sequence in sequences:
            key, _ = self.group(sequence)
            groups.setdefault(key or sequence.sequence_id.encode(), []).append(sequence)
        return [sequence for group in groups.values() for sequence in group]
