"""Tasks that run beside the main one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

Start: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


@contextlib.asynccontextmanager
async def background() -> AsyncIterator[Start]:
    """What is started runs beside the body and ends with it; if one task fails, so does the body."""
    tasks: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as group:

        def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            tasks.append(group.create_task(work))
            return tasks[-1]

        try:
            yield start
        finally:
            for task in tasks:
                task.cancel()
