"""A line about work that takes long, on stderr: it moves on a terminal, and comes now and then elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

FIRST_LINE_S, LONGEST_LINE_S = 3.0, 30.0
"""Between two lines elsewhere than on a terminal; doubled each time."""

SLOW_S = 1.5
"""Until somebody in front of a terminal wonders."""


class Waiting:
    """Context manager; `say` may be called as often as one likes, from any thread."""

    def __init__(self, first: str) -> None:
        """first: what is awaited to begin with."""
        self._began = self._printed = time.monotonic()
        self._interval_s = FIRST_LINE_S
        self._plain = not sys.stderr.isatty()
        self._status = Console(stderr=True).status(escape(first))

    def __enter__(self) -> Self:
        if not self._plain:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._plain:
            self._status.stop()

    def say(self, text: str) -> None:
        """How far it is."""
        now = time.monotonic()
        line = f"{text}; {now - self._began:.0f} s"
        if not self._plain:
            self._status.update(escape(line))
        elif now - self._printed >= self._interval_s:
            self._printed = now
            self._interval_s = min(2 * self._interval_s, LONGEST_LINE_S)
            print(line, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def named_if_slow(what: str) -> AsyncIterator[None]:
    """Says on a terminal what is awaited inside, once, if it takes long."""

    async def say() -> None:
        await asyncio.sleep(SLOW_S)
        if sys.stderr.isatty():
            print(what, file=sys.stderr, flush=True)

    saying = asyncio.create_task(say(), name="say what is awaited")
    try:
        yield
    finally:
        saying.cancel()
