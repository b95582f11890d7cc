"""Notices that an HTTP client has gone, while something is computed for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; give it up, silently, when the client disconnects. The body must have been read."""
    async with asyncio.TaskGroup() as group:
        working = group.create_task(work)
        listening = group.create_task(_until_disconnected(receive))
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        listening.cancel()


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
