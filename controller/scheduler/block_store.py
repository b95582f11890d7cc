"""KV blocks of one instance: who uses them, and which are kept because their content may be wanted again.

All stages have equally many blocks and use the same ids. A full block whose content is known is found by its
key (`tidepipe_common/prefix.py`), shared by as many sequences as begin alike, and kept after their end until
its memory is needed: least recently used first, and of one chain the last block first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(slots=True)
class ReuseStats:
    """All since start. Tokens asked for: of sequences that were admitted, those that could have been found
    (again each time that a preempted one is admitted). Their ratio is the hit rate.

    found_again_tokens: of the found ones, those of sequences that had been admitted before.
    evicted_blocks: contents that were given up because memory was needed.
    """

    asked_tokens: int = 0
    found_tokens: int = 0
    found_again_tokens: int = 0
    evicted_blocks: int = 0


class HoldingsListener(Protocol):
    """Hears which contents can be found. depth: place of the block in its chain, from 0."""

    def entered(self, key: bytes, depth: int) -> None:
        """It can be found from now on."""
        ...

    def evicted(self, key: bytes, depth: int) -> None:
        """It cannot be found any more."""
        ...

    def cleared(self) -> None:
        """Nothing can be found any more."""
        ...


class EvictedContents(Protocol):
    """Takes what memory has no room for."""

    def evicted(self, key: bytes, block: int) -> None:
        """Until the next plan the content is still in its block."""
        ...

    def clear(self) -> None:
        """Nothing can be found any more."""
        ...


class BlockUser(Protocol):
    """Who uses blocks, in order. shared_blocks: how many of them, the first, it does not pay for."""

    blocks: list[int]
    shared_blocks: int


class Found(NamedTuple):
    """Leading blocks of a chain that are here. used: how many of them others use now; they come first."""

    blocks: int
    used: int


class BlockStore:
    """Accounts of the KV blocks of one instance; `check` proves its invariants.

    Each block is blank (no content that can be found, unused), kept (findable, unused) or used by one or more
    sequences. A block that can be found stands behind one that can be found, is used only together with it,
    and was last used no later: so whatever is evicted first has nothing behind it.

    A sequence that uses a block alone *pays* for it: the forecast counts it until that sequence's end. One
    that several use, or have used together, counts for itself (`unpaid`) until nobody uses it.
    """

    def __init__(self, blocks: int, block_size: int, stats: ReuseStats | None = None) -> None:
        """blocks: per stage. block_size: tokens per block."""
        self.total = blocks
        self.block_size = block_size
        self.stats = stats or ReuseStats()
        self.listener: HoldingsListener | None = None
        self.below: EvictedContents | None = None
        self.unpaid = 0
        """Used blocks that nobody pays for."""
        self.references = 0
        """Blocks of all users, shared ones as often as they are used."""
        self._blank: list[int] = []
        self._kept: OrderedDict[int, None] = OrderedDict()
        # Of the blocks that were ever used: a device of any size, or one that claims it, costs what it does.
        self._users: list[int] = []
        self._payers: list[BlockUser | None] = []
        self._keys: list[bytes | None] = []
        self._depths: list[int] = []
        self._places: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody uses, kept ones included."""
        return self._unused + len(self._blank) + len(self._kept)

    @property
    def _unused(self) -> int:
        """Blocks that nobody has used yet: those of the highest ids."""
        return self.total - len(self._users)

    @property
    def used(self) -> int:
        """Blocks that are used, each once."""
        return self.total - self.free

    @property
    def kept(self) -> int:
        """Blocks that nobody uses and whose content can be found."""
        return len(self._kept)

    @property
    def findable(self) -> int:
        """Blocks whose content can be found."""
        return len(self._places)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit if one sequence had all blocks."""
        return self.total * self.block_size

    @property
    def context_tokens(self) -> int:
        """Tokens that the users read: attention reads a shared block once for each."""
        return self.references * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block_size)

    def missing(self, blocks: list[int], tokens: int) -> int:
        """Blocks that an owner of `blocks` lacks to hold `tokens` tokens."""
        return max(0, self.blocks_for(tokens) - len(blocks))

    # -- content ------------------------------------------------------------------------------------

    def find(self, keys: Many[bytes]) -> Found:
        """How many leading keys are here, and of these how many are in use."""
        places, users = self._places, self._users
        found = used = 0
        for key in keys:
            block = places.get(key)
            if block is None:
                break
            found += 1
            if users[block]:
                used = found
        return Found(found, used)

    def blocks_of(self, keys: Many[bytes]) -> list[int]:
        """The blocks that have the leading keys."""
        return [self._places[key] for key in keys[: self.find(keys).blocks]]

    def acquire(self, user: BlockUser, keys: Many[bytes]) -> list[BlockUser]:
        """Make the blocks that have the leading keys the first ones of a user that has none yet.

        Returns who paid for some of them until now.
        """
        relieved: list[BlockUser] = []
        for key in keys:
            block = self._places.get(key)
            if block is None:
                break
            if not self._users[block]:
                del self._kept[block]
                self._payers[block] = user
            else:
                user.shared_blocks += 1
                self._relieve(block, relieved)
            self._users[block] += 1
            user.blocks.append(block)
        self.references += len(user.blocks)
        return relieved

    def pin(self, user: BlockUser, blocks: Many[int]) -> list[BlockUser]:
        """Let a user that has none yet use these blocks as well, from their chain's beginning on; it pays for
        none. Returns who paid for some of them until now."""
        relieved: list[BlockUser] = []
        for block in blocks:
            if not self._users[block]:
                del self._kept[block]
                self.unpaid += 1
            else:
                self._relieve(block, relieved)
            self._users[block] += 1
        user.blocks.extend(blocks)
        user.shared_blocks = len(user.blocks)
        self.references += len(blocks)
        return relieved

    def _relieve(self, block: int, relieved: list[BlockUser]) -> None:
        """Nobody pays for a block any more that several use; `relieved` gets who did."""
        payer = self._payers[block]
        if payer is None:
            return
        self._payers[block] = None
        self.unpaid += 1
        payer.shared_blocks += 1
        if payer not in relieved:
            relieved.append(payer)

    def enter(self, blocks: Many[int], keys: Many[bytes], begin: int, end: int) -> None:
        """Blocks begin .. end - 1 of a sequence have their content from now on: who comes next may share it.

        Not where another block with the same content is here already, nor behind such a one.
        """
        for depth in range(begin, end):
            block, key = blocks[depth], keys[depth]
            if depth and self._keys[blocks[depth - 1]] != keys[depth - 1]:
                return
            if key in self._places:
                continue
            self._places[key] = block
            self._keys[block] = key
            self._depths[block] = depth
            if self.listener is not None:
                self.listener.entered(key, depth)

    def clear(self) -> None:
        """Nothing can be found any more; who uses a block goes on."""
        for block in self._places.values():
            self._keys[block] = None
        self._places.clear()
        self._blank.extend(self._kept)
        self._kept.clear()
        if self.below is not None:
            self.below.clear()
        if self.listener is not None:
            self.listener.cleared()

    # -- memory -------------------------------------------------------------------------------------

    def extend(self, user: BlockUser, tokens: int) -> tuple[int, ...]:
        """Give a user what it lacks to hold `tokens` tokens; returns the new ids.

        ValueError if there are not enough; ask `missing` and `free` first.
        """
        wanted = self.missing(user.blocks, tokens)
        if wanted > self.free:
            raise ValueError(f"{wanted} KV blocks wanted, {self.free} free")
        if not wanted:
            return ()
        for _ in range(wanted - len(self._blank) - self._unused):
            self._evict()
        again = min(wanted, len(self._blank))
        given = tuple(self._blank[: -again - 1 : -1])
        del self._blank[len(self._blank) - again :]
        if new := wanted - again:
            given += tuple(range(len(self._users), len(self._users) + new))
            self._users += [0] * new
            self._payers += [None] * new
            self._keys += [None] * new
            self._depths += [0] * new
        for block in given:
            self._users[block] = 1
            self._payers[block] = user
        self.references += wanted
        user.blocks.extend(given)
        return given

    def _evict(self) -> None:
        block, _ = self._kept.popitem(last=False)
        key = self._keys[block]
        assert key is not None, "what is kept can be found"
        del self._places[key]
        self._keys[block] = None
        self._blank.append(block)
        self.stats.evicted_blocks += 1
        if self.below is not None:
            self.below.evicted(key, block)
        if self.listener is not None:
            self.listener.evicted(key, self._depths[block])

    def disown(self, user: BlockUser) -> None:
        """It pays for none of its blocks any more."""
        for block in user.blocks[user.shared_blocks :]:
            self._payers[block] = None
            self.unpaid += 1
        user.shared_blocks = len(user.blocks)

    def release(self, user: BlockUser) -> None:
        """Take all blocks from a user."""
        users, payers = self._users, self._payers
        # The last one first: of a chain it is the first to be evicted.
        for block in reversed(user.blocks):
            users[block] -= 1
            if users[block]:
                continue
            self.unpaid -= payers[block] is None
            payers[block] = None
            if self._keys[block] is None:
                self._blank.append(block)
            else:
                self._kept[block] = None
        self.references -= len(user.blocks)
        user.blocks.clear()
        user.shared_blocks = 0

    def check(self, users: Many[BlockUser]) -> None:
        """AssertionError unless all invariants hold, these being all users (for tests)."""
        uses = [0] * (self.total - self._unused)
        for user in users:
            for block in user.blocks:
                uses[block] += 1
        if uses != self._users or sum(uses) != self.references:
            raise AssertionError("blocks leaked, or used without being counted")
        unused = sorted(self._blank + list(self._kept))
        if unused != [block for block, count in enumerate(uses) if not count]:
            raise AssertionError("a block that nobody uses is lost, or one that is used may be taken")
        if self.unpaid != sum(n > 0 and p is None for n, p in zip(uses, self._payers, strict=True)):
            raise AssertionError("blocks that nobody pays for are not counted")
        if any(self._keys[block] is None for block in self._kept):
            raise AssertionError("a block is kept that cannot be found")
        if any(self._keys[block] is not None for block in self._blank):
            raise AssertionError("a blank block can be found")
        for user in users:
            payers = [self._payers[block] for block in user.blocks]
            own = [None] * user.shared_blocks + [user] * (len(payers) - user.shared_blocks)
            if payers != own:
                raise AssertionError("a sequence does not pay for exactly what it uses alone")
        named = {key: block for block, key in enumerate(self._keys) if key is not None}
        if named != self._places:
            raise AssertionError("a content is found in another block than it is in")
