"""Runs a command's coroutine so that Ctrl-C and SIGTERM end it in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import typer

from tidepipe.cli.exit_codes import INTERRUPTED


def run(main: Coroutine[Any, Any, int], *, interrupted: int = INTERRUPTED) -> None:
    """Run `main` and exit with the code that it returns.

    SIGINT and SIGTERM cancel it once, so its cleanup cannot be cut short; then the code is `interrupted`.
    """
    raise typer.Exit(asyncio.run(_guarded(main, interrupted)))


async def _guarded(main: Coroutine[Any, Any, int], interrupted: int) -> int:
    task = asyncio.ensure_future(main)
    asked = False

    def stop() -> None:
        nonlocal asked
        if not asked:
            asked = True
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        return interrupted
