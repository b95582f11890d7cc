"""Large things from outside: read beside the event loop, one at a time, and bounded in bytes together.

What takes long to read holds Python's lock for a part of that, and becomes many times larger than it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tidepipe_common.errors import OverloadedError
from tidepipe_common.limits import MAX_UNREAD_BYTES

INLINE_BYTES = 64 * 1024
"""Smaller ones are read at once, in a few milliseconds at most, and need no room."""
RETRY_AFTER_MS = 1000

_Made = TypeVar("_Made")
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="large")


async def beside(size: int, work: Callable[[], _Made]) -> _Made:
    """What `work` makes of something of `size` bytes: in a thread if that is large, in the order of calls."""
    if size <= INLINE_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work)


class Share:
    """What one large message takes of the room for all of them."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._taken = 0

    def grow(self, size: int) -> None:
        """The message has `size` bytes by now. OverloadedError if there is no room for it."""
        if size > INLINE_BYTES and size > self._taken:
            self._room.take(size - self._taken)
            self._taken = size

    def leave(self) -> None:
        """It has been read, or given up."""
        self._room.used -= self._taken
        self._taken = 0


class Room:
    """For large messages that come in, or wait to be read."""

    def __init__(self, most: int = MAX_UNREAD_BYTES) -> None:
        self._most = most
        self.used = 0

    def take(self, size: int) -> None:
        """OverloadedError if there are not so many bytes left."""
        if self.used + size > self._most:
            raise OverloadedError(
                f"large requests of {self.used} bytes are coming in already, and {self._most} are the most; "
                "come again in a moment",
                RETRY_AFTER_MS,
            )
        self.used += size

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """For one message, while it is read."""
        share = Share(self)
        try:
            yield share
        finally:
            share.leave()


ROOM = Room()
"""This process's, for all its doors together."""
