"""Laws of the block store: what is shared, what is kept, and in which order it goes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.scheduler.block_store import BlockStore
from tidepipe_common.prefix import block_keys, root_key

ROOT = root_key("")


@dataclass(eq=False)
class User:
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    shared_blocks: int = 0


@dataclass
class Listener:
    """Knows what can be found, and that nothing goes before what stands behind it."""

    here: dict[bytes, int] = field(default_factory=dict)
    parents: dict[bytes, bytes] = field(default_factory=dict)

    def entered(self, key: bytes, depth: int) -> None:
        assert key not in self.here
        assert depth == 0 or self.parents[key] in self.here
        self.here[key] = depth

    def evicted(self, key: bytes, depth: int) -> None:
        assert self.here.pop(key) == depth
        assert not any(self.parents.get(other) == key for other in self.here), "a leaf goes first"

    def cleared(self) -> None:
        self.here.clear()


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**20), blocks=st.integers(4, 24), size=st.integers(1, 3))
def test_whatever_comes_and_goes(seed: int, blocks: int, size: int) -> None:
    chance = random.Random(seed)
    store, listener = BlockStore(blocks, size), Listener()
    store.listener = listener
    users: list[User] = []
    for _ in range(120):
        if users and chance.random() < 0.4:
            store.release(users.pop(chance.randrange(len(users))))
        elif chance.random() < 0.03:
            store.clear()
        else:
            user = User([chance.choice((1, 1, 1, 2)) for _ in range(chance.randint(1, 4 * size + 3))])
            keys = block_keys(ROOT, user.tokens, size)
            listener.parents.update(zip(keys[1:], keys, strict=False))
            found = store.find(keys)
            if store.blocks_for(len(user.tokens)) - found.used <= store.free:
                store.acquire(user, keys)
                assert len(user.blocks) == found.blocks
                store.extend(user, len(user.tokens))
                store.enter(user.blocks, keys, found.blocks, chance.randint(found.blocks, len(keys)))
                users.append(user)
        store.check(users)
        assert len(listener.here) == store.findable
    for user in users:
        store.release(user)
    store.check([])
    assert store.free == store.total and store.unpaid == 0


def test_what_was_used_last_stays() -> None:
    """Two chains of two blocks in a memory of four: the older one makes room, its last block first."""
    store = BlockStore(4, 1)
    chains = [block_keys(ROOT, tokens, 1) for tokens in ((1, 2), (3, 4))]
    users = [User([1, 2]), User([3, 4])]
    for user, keys in zip(users, chains, strict=True):
        store.extend(user, 2)
        store.enter(user.blocks, keys, 0, 2)
    store.release(users[1])
    store.release(users[0])
    for left in ((2, 1), (2, 0), (1, 0)):
        store.extend(User([]), 1)
        assert tuple(store.find(keys).blocks for keys in chains) == left
    assert store.stats.evicted_blocks == 3


def test_memory_is_of_what_was_used() -> None:
    """Not of what a device, or a stage that says so, has."""
    store, user = BlockStore(10**15, 16), User([])
    assert store.extend(user, 40) == (0, 1, 2)
    store.release(user)
    assert store.extend(user, 70) == (0, 1, 2, 3, 4)
    assert store.free == 10**15 - 5
    store.check([user])
