"""What an instance tells of its blocks, from its store to the router's index."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.scheduler.holdings import HeldPrefixes, HoldingsReader
from router.scheduler.prefix_index import PrefixIndex
from tidepipe_common.prefix import STRIDE, block_keys, root_key, told_key

ROOT = root_key("")
MOST = 12
"""Keys that are told at most: few, so that the stride has to grow."""

Path = tuple[int, ...]


def tokens(path: Path) -> list[int]:
    """Blocks are one token here, and a part of a path is as long as a stride."""
    return [part for part in path for _ in range(STRIDE)]


class Store:
    """Which blocks can be found, by what a BlockStore promises: closed under parents."""

    def __init__(self, listener: HeldPrefixes) -> None:
        self.keys: dict[bytes, int] = {}
        self._listener = listener

    def enter(self, path: Path, blocks: int) -> None:
        for depth, key in enumerate(block_keys(ROOT, tokens(path), 1)[:blocks]):
            if key not in self.keys:
                self.keys[key] = depth
                self._listener.entered(key, depth)

    def evict(self, path: Path, blocks: int) -> None:
        """All behind so many of its blocks, the deepest first; and what else stands behind them."""
        chain = block_keys(ROOT, tokens(path), 1)
        if blocks >= len(chain) or chain[blocks] not in self.keys:
            return
        for key, depth in sorted(self.keys.items(), key=lambda item: -item[1]):
            if depth >= blocks:
                del self.keys[key]
                self._listener.evicted(key, depth)

    def clear(self) -> None:
        self.keys.clear()
        self._listener.cleared()

    def found(self, path: Path) -> int:
        """Leading blocks that are there."""
        return sum(key in self.keys for key in block_keys(ROOT, tokens(path), 1))


paths = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)
blocks = st.integers(0, 6 * STRIDE)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), paths, blocks),
        st.tuples(st.just("evict"), paths, blocks),
        st.tuples(st.sampled_from(["tell", "tell", "lose", "anew", "clear"]), st.just(()), st.just(0)),
    ),
    max_size=40,
)


A_FIRST_PIECE_IS_LOST = [("tell", (), 0), ("enter", (0,), STRIDE), ("anew", (), 0), ("lose", (), 0)]


@settings(max_examples=300, deadline=None)
@given(steps, paths)
@example(A_FIRST_PIECE_IS_LOST, (0,))
def test_the_index_is_what_the_store_holds(course: list[tuple[str, Path, int]], asked: Path) -> None:
    """Whatever came, went and was lost on the way: once all is told, the router knows every beginning to
    within a stride, and never more than there is; and while something is missing it says so."""
    held = HeldPrefixes(1, most=MOST)
    store, reader, index = Store(held), HoldingsReader(held, most=5), PrefixIndex()

    def tell() -> bool:
        """One report; asked anew for the whole if something was missed. True: that was something."""
        nonlocal reader
        news = reader.next()
        index.hear(news)
        if index.missed:
            reader = HoldingsReader(held, most=5)
        return index.missed or news.whole or bool(news.added or news.removed)

    for what, path, count in course:
        match what:
            case "enter":
                store.enter(path, count)
            case "evict":
                store.evict(path, count)
            case "clear":
                store.clear()
            case "tell":
                tell()
            case "lose":
                reader.next()
            case _:
                reader = HoldingsReader(held, most=5)
        assert len(held) <= MOST
    while tell():
        pass
    assert held.told() == [key for key in held.told() if key in {told_key(known) for known in store.keys}]
    prefix = tuple(map(told_key, block_keys(ROOT, tokens(asked), 1)[STRIDE - 1 :: STRIDE]))
    assert index.cached_tokens(prefix) == store.found(asked) // held.stride * held.stride


@given(paths, st.lists(paths, max_size=8), st.data())
def test_what_was_sent_is_expected_until_it_is_not(
    asked: Path, sent: list[Path], data: st.DataObject
) -> None:
    """Beginnings of several requests overlap; each is counted as often as it was sent."""
    index = PrefixIndex()
    index.hear(HoldingsReader(HeldPrefixes(1)).next())
    names = [tuple(path[: depth + 1] for depth in range(len(path))) for path in (asked, *sent)]
    told = {part: number for number, part in enumerate({part for name in names for part in name})}
    keys = [tuple(told[part] for part in name) for name in names]
    for name in keys[1:]:
        index.expect(name)
    gone = data.draw(st.sets(st.integers(1, len(sent)), max_size=len(sent))) if sent else set()
    for place in gone:
        index.unexpect(keys[place])
    kept = [names[place] for place in range(1, len(names)) if place not in gone]
    there = {part for name in kept for part in name}
    leading = 0
    while leading < len(asked) and names[0][leading] in there:
        leading += 1
    assert index.cached_tokens(keys[0]) == index.shared_tokens(keys[0]) == leading * STRIDE
    for place in set(range(1, len(names))) - gone:
        index.unexpect(keys[place])
    assert index.cached_tokens(keys[0]) == 0
