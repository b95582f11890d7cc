"""Places for requests of batches, shared by owners: one with many lines does not hold up another's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable


class Places:
    """Who has fewest goes first. A line that waits for its owner's limits steps aside: it holds no place, and
    no other line of its owner begins."""

    def __init__(self, total: int, most: Callable[[str], int | None] = lambda owner: None) -> None:
        """most: of one owner at a time; None for any number."""
        self._total = total
        self._most = most
        self._held: Counter[str] = Counter()
        self._aside: Counter[str] = Counter()
        self._waiting: list[tuple[str, bool, asyncio.Future[None]]] = []

    async def acquire(self, owner: str, *, again: bool = False) -> None:
        """Return when there is a place. again: for a line that had one before."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((owner, again, granted))
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(owner)
            else:
                self._waiting = [one for one in self._waiting if one[2] is not granted]
            raise

    def release(self, owner: str) -> None:
        """Give one back."""
        self._held[owner] -= 1
        self._grant()

    async def aside(self, owner: str, seconds: float) -> None:
        """Give the place to others meanwhile; there is one again when this returns, also by cancellation."""
        self._aside[owner] += 1
        self.release(owner)
        try:
            await asyncio.sleep(seconds)
            await self.acquire(owner, again=True)
        except BaseException:
            self._held[owner] += 1  # whoever gives it back does not know
            raise
        finally:
            self._aside[owner] -= 1
            self._grant()

    def _grant(self) -> None:
        while self._held.total() < self._total:
            fitting = [one for one in self._waiting if self._fits(*one)]
            if not fitting:
                return
            chosen = min(fitting, key=lambda one: self._held[one[0]])
            self._waiting.remove(chosen)
            self._held[chosen[0]] += 1
            chosen[2].set_result(None)

    def _fits(self, owner: str, again: bool, granted: asyncio.Future[None]) -> bool:
        if granted.done():
            return False
        if again:
            return True
        most = self._most(owner)
        return not self._aside[owner] and (most is None or self._held[owner] < most)
