"""One client that listens to a request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType

from router.requests.delta import Cursor, Delta, Position
from router.requests.entry import RequestEntry
from router.requests.pacing import Pacing
from tidepipe_common.errors import InvalidRequestError


class Subscription:
    """Counts as a listener from its creation until `with` is left; who creates it must enter it."""

    def __init__(
        self,
        entry: RequestEntry,
        attached: bool,
        leave: Callable[[], None],
        pacing: Pacing,
        gap_s: float = 0.0,
    ) -> None:
        """attached: the request was known before. gap_s: between two pieces at least, unless it ends."""
        self.entry = entry
        self.attached = attached
        self._leave = leave
        self._left = False
        self._pacing = pacing
        self._gap_s = gap_s
        pacing.streams += 1

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Listen no more. Harmless when repeated."""
        if not self._left:
            self._left = True
            self._pacing.streams -= 1
            self._leave()

    async def admitted(self) -> None:
        """Return when the request has been tokenized and checked; raises what is wrong with it."""
        while True:
            changed = self.entry.changed.next()
            if self.entry.failure is not None:
                raise self.entry.failure
            if self.entry.answers:
                return
            await changed.wait()

    async def deltas(self, resume: Sequence[Position] = ()) -> AsyncIterator[list[Delta]]:
        """All that is new since the last piece, until every answer has ended.

        Reads by position from the answers' logs, so a slow listener costs no memory: what it missed
        travels together. Raises the error with which the request failed.
        """
        await self.admitted()
        answers = self.entry.answers
        cursors = [Cursor() for _ in answers]
        for position in resume:
            if position.index >= len(answers):
                raise InvalidRequestError(
                    f"resume names answer {position.index}, but the request has {len(answers)}", "resume"
                )
            cursors[position.index] = Cursor(position.tokens, position.characters)
        clock = asyncio.get_running_loop().time
        next_at = 0.0
        while not all(cursor.done for cursor in cursors):
            if (wait := next_at - clock()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self.entry.over.wait()
            changed = self.entry.changed.next()
            if self.entry.failure is not None:
                raise self.entry.failure
            new = [
                delta
                for answer, cursor in zip(answers, cursors, strict=True)
                if (delta := answer.read(cursor)) is not None
            ]
            if new:
                next_at = clock() + max(self._gap_s, self._pacing.gap_s)
                yield new
            else:
                await changed.wait()
