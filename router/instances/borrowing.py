"""The queue of sequences whose beginning another instance is asked to lend, in front of SubmitSequences."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from router.instances.sequence import Placement


class Borrowings:
    """Each sequence waits for the answer of one call, whose deadline is short; nobody waits for another one.

    Bounded by what the dispatcher gives the link: max_sequences.
    """

    def __init__(self, hand_over: Callable[[Placement], None], is_here: Callable[[Placement], bool]) -> None:
        """hand_over: goes on with a sequence, whatever was answered."""
        self._hand_over = hand_over
        self._is_here = is_here
        self._queue: deque[Placement] = deque()
        self._filled = asyncio.Event()

    def add(self, placement: Placement) -> None:
        """Queue a sequence."""
        self._queue.append(placement)
        self._filled.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._filled.wait()
                self._filled.clear()
                while self._queue:
                    group.create_task(self._ask(self._queue.popleft()))

    async def _ask(self, placement: Placement) -> None:
        ask, placement.ask = placement.ask, None
        assert ask is not None, "somebody is to be asked"
        source = await ask(placement)
        if not self._is_here(placement):
            if source is not None:
                source.release()
            return
        placement.source = source
        self._hand_over(placement)
