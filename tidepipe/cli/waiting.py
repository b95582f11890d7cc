"""A line about work that takes long, on stderr: it moves on a terminal, and comes now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

LINE_INTERVAL_S = 10.0


class Waiting:
    """Context manager; `say` may be called as often as one likes, from any thread."""

    def __init__(self, first: str) -> None:
        """first: what is awaited to begin with."""
        self._began = self._printed = time.monotonic()
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
        elif now - self._printed >= LINE_INTERVAL_S:
            self._printed = now
            print(line, file=sys.stderr, flush=True)
