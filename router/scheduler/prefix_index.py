"""The index of prefixes that an instance holds or will hold, as far as a router can know."""

from __future__ import annotations

from collections.abc import Container

from tidepipe_common.prefix import MAX_TOLD, STRIDE
from tidepipe_common.types.holdings import PrefixHoldings

Prefix = tuple[int, ...]
"""Keys of a prompt's beginning: `tidepipe_common.prefix.told_keys`."""


class PrefixIndex:
    """Beginnings that an instance holds, by what it tells, and those that it will: what is to be computed
    there for requests that were sent there.

    missed: True while what it tells cannot be made sense of, because the beginning is missing.
    """

    def __init__(self) -> None:
        self.missed = False
        self._held: set[int] = set()
        self._coming: dict[int, int] = {}
        self._stride = 1  # in keys
        self._key_tokens = 0
        self._version = 0

    @property
    def reuses(self) -> bool:
        """Does the instance use blocks again, as far as is known?"""
        return self._key_tokens > 0

    def hear(self, news: PrefixHoldings | None) -> None:
        """A report came. news: what it tells; None: the instance does not reuse blocks."""
        if news is None or not self._follows(news):
            self.forget()
            self.missed = news is not None
            return
        if news.whole:
            self._held.clear()
        self._version = news.version
        self._key_tokens = news.block_size * STRIDE
        self._stride = news.stride // STRIDE
        self._held.difference_update(news.removed)
        self._held.update(news.added)
        # More than any instance tells: whatever that is, it must not fill our memory.
        self.missed = len(self._held) > 2 * MAX_TOLD
        if self.missed:
            self.forget()

    def forget(self) -> None:
        """Nothing is known of what it holds."""
        self._held.clear()
        self._key_tokens = 0
        self._version = 0

    def expect(self, prefix: Prefix) -> None:
        """A request was sent there: it will be computed, if it is not there."""
        coming = self._coming
        for key in prefix:
            coming[key] = coming.get(key, 0) + 1

    def unexpect(self, prefix: Prefix) -> None:
        """That was computed, or will not be."""
        coming = self._coming
        for key in prefix:
            left = coming[key] - 1
            if left:
                coming[key] = left
            else:
                del coming[key]

    def cached_tokens(self, prefix: Prefix) -> int:
        """Tokens that will be found of a prompt that begins so."""
        stride = self._stride
        # Asked of every instance for every request, and mostly nothing of it is there.
        told = len(prefix) >= stride and prefix[stride - 1] in self._held
        if not told and not (self._coming and prefix and prefix[0] in self._coming):
            return 0
        return max(_leading(prefix, self._held, stride) * self._key_tokens, self.shared_tokens(prefix))

    def held_tokens(self, prefix: Prefix) -> int:
        """Of a prompt that begins so, tokens that are there already."""
        return _leading(prefix, self._held, self._stride) * self._key_tokens if self._held else 0

    def shared_tokens(self, prefix: Prefix) -> int:
        """Of these, tokens that others have, too, who were sent there and are not computed yet."""
        return _leading(prefix, self._coming, 1) * self._key_tokens if self._coming else 0

    def _follows(self, news: PrefixHoldings) -> bool:
        follows = news.whole or (self.reuses and news.version == self._version + 1)
        return follows and news.block_size > 0 and news.stride > 0 and not news.stride % STRIDE


def _leading(prefix: Prefix, keys: Container[int], stride: int) -> int:
    """How many of the prefix's first keys are there, looking at every `stride`-th: who is there is there
    with all before it, so halving the range finds the last one."""
    low, high = 0, len(prefix) // stride
    if not high or prefix[stride - 1] not in keys:
        return 0
    low = 1
    while low < high:
        middle = (low + high + 1) // 2
        if prefix[middle * stride - 1] in keys:
            low = middle
        else:
            high = middle - 1
    return low * stride
