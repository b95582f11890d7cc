"""A Unix socket that tells whether a process is serving, for health checks that cost next to nothing.

A container is asked every few seconds for years. Over gRPC each question is a Python process that loads gRPC
and speaks TLS, a third of a second of a core; over this socket it is one that loads the socket module. The
answer comes from the service's own event loop: one that hangs does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tidepipe_common.errors import ConfigError
from tidepipe_common.rpc.probe import SERVING

HEALTH_SOCKET = "TIDEPIPE_HEALTH_SOCKET"
"""Environment variable with the socket's path; without it there is none."""


@contextlib.asynccontextmanager
async def serve_health(serving: Callable[[], bool], path: str | None = None) -> AsyncIterator[None]:
    """Answer at `path` inside the `with`; None: where HEALTH_SOCKET says, if anywhere.

    Every connection gets one line, SERVING or NOT_SERVING, and is closed. ConfigError if it cannot be had.
    """
    path = os.environ.get(HEALTH_SOCKET) if path is None else path
    if not path:
        yield
        return

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(SERVING if serving() else b"NOT_SERVING\n")
            await writer.drain()
        writer.close()

    try:
        # A process that was killed leaves its socket behind.
        Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 (of a file that holds nothing)
        server = await asyncio.start_unix_server(answer, path)
    except OSError as error:
        raise ConfigError(f"cannot answer health checks at {path} ({HEALTH_SOCKET}): {error}") from error
    ours = Path(path).stat().st_ino  # noqa: ASYNC240
    async with server:
        yield
    with contextlib.suppress(OSError):
        # A successor may have put its own in the same place.
        if Path(path).stat().st_ino == ours:  # noqa: ASYNC240
            Path(path).unlink()  # noqa: ASYNC240
