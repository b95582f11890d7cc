"""The account of findable KV blocks that routers are told: bounded, and as differences."""

from __future__ import annotations

from collections import deque
from itertools import islice

from tidepipe_common.prefix import MAX_TOLD, STRIDE, told_key
from tidepipe_common.types.holdings import PrefixHoldings

MAX_PIECE = 4096
"""Keys in one report: 32 KiB, and a fraction of a millisecond."""
LEVELS = 24
"""Doublings of the stride: more than any chain of blocks is long."""


class HeldPrefixes:
    """A BlockStore's listener that keeps the account which is told: the key of every `stride`-th block of a
    beginning. What is told is closed under what stands before it, as the store itself is.

    The stride doubles when more than `most` keys would be told, and halves again when half of them would be:
    a router underestimates what it finds by less than a stride, whatever is held.
    """

    def __init__(self, block_size: int, most: int = MAX_TOLD) -> None:
        """most: keys that are told at most."""
        self.block_size = block_size
        self.version = 0
        """Of what is told: one more with each change."""
        self._most = most
        self._readers = 0
        self._level = 0
        self._depths: dict[int, int] = {}
        self._counts = [0] * LEVELS
        self._log: deque[tuple[int, bool]] = deque(maxlen=most)

    @property
    def stride(self) -> int:
        """Blocks between two keys that are told."""
        return STRIDE << self._level

    def __len__(self) -> int:
        """Keys that are told."""
        return self._counts[self._level]

    def new_reader(self) -> int:
        """Its number: no other has it."""
        self._readers += 1
        return self._readers

    def told(self) -> list[int]:
        """All keys that are told, each behind those that stand before it."""
        stride = self.stride
        # What comes again after its eviction stands at the end, and so does all behind it: leaves go first.
        return [key for key, depth in self._depths.items() if not depth % stride]

    def changes_since(self, version: int) -> list[tuple[int, bool]] | None:
        """Keys that came (True) and went since then, in this order; None: so much that all is told anew."""
        count = self.version - version
        if count > len(self._log):
            return None
        return list(islice(reversed(self._log), count))[::-1]

    # -- the store says -----------------------------------------------------------------------------

    def entered(self, key: bytes, depth: int) -> None:
        """Part of HoldingsListener."""
        blocks = depth + 1
        if blocks % STRIDE:
            return
        told = told_key(key)
        if told not in self._depths:
            self._depths[told] = blocks
            self._note(told, blocks, True)

    def evicted(self, key: bytes, depth: int) -> None:
        """Part of HoldingsListener."""
        if (depth + 1) % STRIDE:
            return
        told = told_key(key)
        blocks = self._depths.pop(told, None)
        if blocks is not None:
            self._note(told, blocks, False)

    def cleared(self) -> None:
        """Part of HoldingsListener."""
        self._depths.clear()
        self._counts = [0] * LEVELS
        self._level = 0
        self._tell_anew()

    def _note(self, told: int, blocks: int, came: bool) -> None:
        strides, counts = blocks // STRIDE, self._counts
        for level in range(LEVELS):
            if strides & ((1 << level) - 1):
                break
            counts[level] += 1 if came else -1
        if not blocks % self.stride:
            self.version += 1
            self._log.append((told, came))
        level = self._level
        while counts[level] > self._most:
            level += 1
        while level and counts[level - 1] <= self._most // 2:
            level -= 1
        if level != self._level:
            self._level = level
            self._tell_anew()

    def _tell_anew(self) -> None:
        self.version += 1
        self._log.clear()


class HoldingsReader:
    """One router's place in the account of an instance."""

    def __init__(self, held: HeldPrefixes, most: int = MAX_PIECE) -> None:
        """most: keys in one piece."""
        self.held = held
        self._most = most
        # So that what follows one piece of one reader follows none of another's.
        self._pieces = held.new_reader() << 32
        self._read = -1
        self._rest: deque[int] = deque()

    def next(self) -> PrefixHoldings:
        """What is new; without keys if nothing is."""
        held = self.held
        self._pieces += 1
        changes = None if self._read < 0 else held.changes_since(self._read)
        whole = changes is None
        if changes is None:
            self._rest = deque(held.told())
            self._read = held.version
            changes = []
        came: dict[int, bool] = {}
        if self._rest:
            # What has changed meanwhile is told behind the last of them.
            came = {self._rest.popleft(): True for _ in range(min(self._most, len(self._rest)))}
        else:
            came = dict(changes[: self._most])
            self._read += min(self._most, len(changes))
        return PrefixHoldings(
            version=self._pieces,
            whole=whole,
            block_size=held.block_size,
            stride=held.stride,
            added=[key for key, here in came.items() if here],
            removed=[key for key, here in came.items() if not here],
        )
