"""uvicorn inside a service's own event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import structlog
import uvicorn
from starlette.types import ASGIApp

from common.errors import ConfigError

BACKLOG = 2048

log = structlog.get_logger()


class HttpServer:
    """Serves an application until told to stop."""

    def __init__(self, app: ASGIApp, listen: str, *, grace_s: float) -> None:
        """Binds at once. listen: HOST:PORT, port 0 picks a free one. ConfigError if it cannot be had.

        grace_s: how long responses may go on after `stop`.
        """
        self._socket = _bind(listen)
        host, port = self._socket.getsockname()[:2]
        self.address = f"{host}:{port}"
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, round(grace_s)),
            )
        )

    async def run(self) -> None:
        """Serve until `stop` and the end of the responses."""
        log.info("HTTP", address=self.address)
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Accept nothing more, and let `run` return when the responses have ended."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's business, not uvicorn's."""
        yield


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"the HTTP address must be HOST:PORT, got {listen!r}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {listen} for HTTP: {error.strerror or error}; choose another port"
        ) from error
