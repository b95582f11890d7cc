"""Large things from outside: read beside the event loop, one at a time, and bounded in bytes together.

What takes long to read holds Python's lock for a part of that, and becomes many times larger than it was.
Owners take turns, and none has more than half of the room: nobody's large requests keep others' waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from tidepipe_common.errors import OverloadedError
from tidepipe_common.limits import MAX_UNREAD_BYTES
from tidepipe_common.security.caller import current

INLINE_BYTES = 64 * 1024
"""Smaller ones are read at once, in a few milliseconds at most, and need no room."""
RETRY_AFTER_MS = 1000
LARGEST_SHARE = 2
"""One owner may have the room divided by this, where owners are known."""

_Made = TypeVar("_Made")
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="large")


async def beside(size: int, work: Callable[[], _Made]) -> _Made:
    """What `work` makes of something of `size` bytes: in a thread if that is large, in the order of calls of
    one owner."""
    if size <= INLINE_BYTES:
        return work()
    loop = asyncio.get_running_loop()
    return await _TURNS.setdefault(loop, Turns(_THREAD)).made(work)


class Turns:
    """What waits for a thread, a line for each owner. Of one event loop."""

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._waiting: OrderedDict[str, deque[tuple[Callable[[], Any], asyncio.Future[Any]]]] = OrderedDict()
        self._busy = False

    async def made(self, work: Callable[[], _Made]) -> _Made:
        """Its result, when it has been its turn."""
        done: asyncio.Future[_Made] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(current().owner, deque()).append((work, done))
        self._begin()
        return await done

    def _begin(self) -> None:
        while self._waiting and not self._busy:
            owner, line = self._waiting.popitem(last=False)
            work, done = line.popleft()
            if line:
                self._waiting[owner] = line  # behind the others
            if done.done():  # whoever asked has gone, and gives the turn to the next of its line
                if line:
                    self._waiting.move_to_end(owner, last=False)
                continue
            try:
                running = asyncio.get_running_loop().run_in_executor(self._thread, work)
            except RuntimeError as error:  # the process ends
                done.set_exception(error)
            else:
                self._busy = True
                running.add_done_callback(lambda ended, done=done: self._ended(ended, done))  # type: ignore[misc]

    def _ended(self, ended: asyncio.Future[Any], done: asyncio.Future[Any]) -> None:
        self._busy = False
        self._begin()
        error = None if ended.cancelled() else ended.exception()
        if done.done():
            return
        if ended.cancelled():
            done.cancel()
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(ended.result())


_TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


class Share:
    """What one large message takes of the room for all of them."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._owner = current().owner
        self._taken = 0

    def grow(self, size: int) -> None:
        """The message has `size` bytes by now. OverloadedError if there is no room for it."""
        if size > INLINE_BYTES and size > self._taken:
            self._room.take(size - self._taken, self._owner)
            self._taken = size

    def leave(self) -> None:
        """It has been read, or given up."""
        self._room.give_back(self._taken, self._owner)
        self._taken = 0


class Room:
    """For large messages that come in, or wait to be read."""

    def __init__(self, most: int = MAX_UNREAD_BYTES) -> None:
        self._most = most
        self._owned: Counter[str] = Counter()
        self.used = 0

    def take(self, size: int, owner: str = "") -> None:
        """OverloadedError if there are not so many bytes left, for this owner or at all."""
        mine, share = self._owned[owner], self._most // LARGEST_SHARE
        used, most = (mine, share) if owner and mine + size > share else (self.used, self._most)
        if used + size > most:
            raise OverloadedError(
                f"large requests of {used} bytes are coming in already, and {most} are the most; "
                "come again in a moment",
                RETRY_AFTER_MS,
            )
        self.used += size
        self._owned[owner] += size

    def give_back(self, size: int, owner: str = "") -> None:
        """They are not needed any more."""
        self.used -= size
        self._owned[owner] -= size
        if not self._owned[owner]:
            del self._owned[owner]

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
