"""A rolling restart, when somebody asks for it."""

from __future__ import annotations

import asyncio
import sys
from typing import Protocol

from common.errors import TidePipeError


class Renewable(Protocol):
    """A cluster, or one of its processes."""

    async def renew(self) -> None:
        """Start it anew. TidePipeError if that does not work."""
        ...


class Renewal:
    """One at a time; says on stderr how it goes."""

    def __init__(self, what: Renewable) -> None:
        self._what = what
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Unless one is under way."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._renew())

    def end(self) -> None:
        """Leave it as it is."""
        if self._task is not None:
            self._task.cancel()

    async def _renew(self) -> None:
        print("starting all processes anew, one after the other", file=sys.stderr, flush=True)
        try:
            await self._what.renew()
        except TidePipeError as error:
            print(f"not all processes were started anew: {error}", file=sys.stderr, flush=True)
        else:
            print("all processes are new", file=sys.stderr, flush=True)
