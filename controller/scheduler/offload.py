"""The second tier: contents of KV blocks that memory had no room for, in slots that every stage keeps.

All stages have equally many slots and use the same numbers. Which content is in which slot is decided here;
plans carry the copies, and as steps are executed in the order of dispatch, a slot holds what is believed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NamedTuple

from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import chunk_pairs
from tidepipe_common.types.plan import BlockCopies


@dataclass(frozen=True, slots=True)
class OffloadCapacity:
    """What all stages of an epoch can do. slots: blocks; 0: there is no second tier.

    block_s: what loading one block takes at the slowest stage, seconds.
    step_blocks: copied in each direction by one step at most, so that it is not held up long.
    """

    slots: int = 0
    block_s: float = 0.0
    step_blocks: int = 0


NO_OFFLOAD = OffloadCapacity()


@dataclass(slots=True)
class OffloadStats:
    """Blocks, all since start. evicted: contents given up for others, or because a step could take no more.

    refused: contents that were there, but quicker to compute than to load.
    load_s, compute_s: predicted of those that were loaded, and what computing them would have taken.
    """

    saved: int = 0
    loaded: int = 0
    evicted: int = 0
    refused: int = 0
    load_s: float = 0.0
    compute_s: float = 0.0

    def note(self, verdict: LoadVerdict) -> None:
        """A sequence was admitted."""
        if verdict.blocks:
            self.load_s += verdict.load_s
            self.compute_s += verdict.compute_s
        self.refused += verdict.here - verdict.blocks


class LoadVerdict(NamedTuple):
    """How many blocks are worth loading, of those that are here, and the predicted seconds of both ways."""

    blocks: int
    here: int
    load_s: float
    compute_s: float


def compute_seconds(cost: StepCost, begin: int, tokens: int, chunk: int) -> float:
    """What a stage takes to compute so many tokens behind position `begin`, in steps of `chunk` tokens."""
    return cost.linear_s(chunk) / chunk * tokens + cost.attention_s(0, chunk_pairs(begin, tokens))


class SecondTier:
    """The index of one epoch: least recently used contents are given up first.

    Memory evicts of one chain the last block first, so here as well it is the first to go.
    """

    def __init__(self, capacity: OffloadCapacity, block_size: int, stats: OffloadStats) -> None:
        self.capacity = capacity
        self.stats = stats
        self._block_size = block_size
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._blank = list(range(capacity.slots - 1, -1, -1))
        self._evicted: list[tuple[bytes, int]] = []
        self._loads: list[tuple[int, int]] = []

    def __len__(self) -> int:
        """Contents that are here."""
        return len(self._slots)

    def find(self, keys: Many[bytes], begin: int) -> int:
        """How many keys from the one at `begin` on are here."""
        slots, end = self._slots, begin
        while end < len(keys) and keys[end] in slots:
            end += 1
        return end - begin

    def worth_loading(self, keys: Many[bytes], begin: int, cost: StepCost | None, chunk: int) -> LoadVerdict:
        """Of the keys from the one at `begin` on: those that are here and sooner loaded than computed.

        cost: of steps of `chunk` prompt tokens; None: unknown, nothing is loaded.
        """
        count = self.find(keys, begin)
        if not count or cost is None:
            return LoadVerdict(0, count, 0.0, 0.0)
        compute_s = compute_seconds(cost, begin * self._block_size, count * self._block_size, chunk)
        load_s = count * self.capacity.block_s
        return LoadVerdict(count if load_s < compute_s else 0, count, load_s, compute_s)

    def room(self) -> int:
        """Blocks that the next plan can still load."""
        return max(0, self.capacity.step_blocks - len(self._loads))

    def evicted(self, key: bytes, block: int) -> None:
        """Memory has given up a content; until the next plan it is still in its block."""
        if key in self._slots:
            self._slots.move_to_end(key)
        else:
            self._evicted.append((key, block))

    def overwritten(self, blocks: Many[int]) -> None:
        """What memory has given up in these blocks is not in them any more when the next plan comes."""
        gone = set(blocks)
        kept = [one for one in self._evicted if one[1] not in gone]
        self.stats.evicted += len(self._evicted) - len(kept)
        self._evicted = kept

    def load(self, keys: Many[bytes], blocks: Many[int]) -> None:
        """The next plan copies these contents, which are here, to these blocks."""
        # The last one first: of a chain it is the first to go.
        for key, block in zip(reversed(keys), reversed(blocks), strict=True):
            self._slots.move_to_end(key)
            self._loads.append((self._slots[key], block))
        self.stats.loaded += len(keys)

    def take_copies(self) -> BlockCopies:
        """What the next plan carries: blocks are saved before others are loaded."""
        loads, self._loads = self._loads, []
        evicted, self._evicted = self._evicted, []
        if not evicted:
            return BlockCopies((), tuple(loads)) if loads else NO_COPIES
        in_use = {slot for slot, _ in loads}
        # Those that were evicted last are nearest to the roots.
        most = min(self.capacity.step_blocks, self.capacity.slots - len(in_use))
        dropped = max(0, len(evicted) - most)
        self.stats.evicted += dropped
        saves = []
        for key, block in evicted[dropped:]:
            # It may have been computed anew, and evicted again.
            slot = self._slots.get(key)
            if slot is None:
                slot = self._take_slot(in_use)
                if slot is None:
                    self.stats.evicted += 1
                    continue
            self._slots[key] = slot
            self._slots.move_to_end(key)
            in_use.add(slot)
            saves.append((block, slot))
        self.stats.saved += len(saves)
        return BlockCopies(tuple(saves), tuple(loads))

    def _take_slot(self, in_use: set[int]) -> int | None:
        """A blank one, or that of the content which was not used for longest; None if all are in use."""
        for index in range(len(self._blank) - 1, -1, -1):
            if self._blank[index] not in in_use:
                return self._blank.pop(index)
        for key, slot in self._slots.items():
            if slot not in in_use:
                del self._slots[key]
                self.stats.evicted += 1
                return slot
        return None

    def clear(self) -> None:
        """Nothing can be found any more; loads that are due are still done."""
        self._blank.extend(self._slots.values())
        self._slots.clear()
        self._evicted.clear()

    def check(self) -> None:
        """AssertionError unless each slot is blank or holds one content (for tests)."""
        if sorted([*self._blank, *self._slots.values()]) != list(range(self.capacity.slots)):
            raise AssertionError("a slot is lost, or holds two contents")


NO_COPIES = BlockCopies()
