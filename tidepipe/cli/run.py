"""Runs a command's coroutine so that Ctrl-C and SIGTERM end it in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

import typer

from tidepipe.cli.exit_codes import INTERRUPTED

# A terminal and the program between it and us may both pass on the same Ctrl-C.
_SAME_KEY_PRESS_S = 1.0


def run(main: Coroutine[Any, Any, int], *, interrupted: int = INTERRUPTED) -> None:
    """Run `main` and exit with the code that it returns.

    SIGINT and SIGTERM cancel it, once; then the code is `interrupted`. Another Ctrl-C later on leaves at
    once: what is left of a cluster notices within seconds that its supervisor is gone.
    """
    raise typer.Exit(asyncio.run(_guarded(main, interrupted)))


async def _guarded(main: Coroutine[Any, Any, int], interrupted: int) -> int:
    task = asyncio.ensure_future(main)
    asked_at: float | None = None

    def stop(number: signal.Signals) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at is None:
            asked_at = now
            task.cancel()
            if sys.stderr.isatty():
                print("stopping; Ctrl-C again leaves at once", file=sys.stderr)
        elif number is signal.SIGINT and now - asked_at > _SAME_KEY_PRESS_S:
            os._exit(INTERRUPTED)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        return interrupted
