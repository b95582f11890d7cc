"""A rolling restart, when somebody asks for it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Protocol

from tidepipe_common.errors import TidePipeError


class Renewable(Protocol):
    """A cluster, or one of its processes."""

    async def renew(self) -> None:
        """Start it anew. TidePipeError if that does not work."""
        ...


class Renewal:
    """At SIGHUP, one at a time; says on stderr how it goes. Without `ready` there is nothing to renew yet.

    SIGHUP also comes when a terminal is closed: that ends the process, as SIGTERM does.
    """

    def __init__(self, what: Renewable) -> None:
        self._what = what
        self._task: asyncio.Task[None] | None = None
        self._has_terminal = sys.stdin is not None and sys.stdin.isatty()
        self.ready = False
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked)

    def _asked(self) -> None:
        if self._has_terminal and _terminal_is_gone():
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.ready and (self._task is None or self._task.done()):
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


def _terminal_is_gone() -> bool:
    try:
        os.tcgetpgrp(sys.stdin.fileno())
    except OSError:
        return True
    return False
