"""uvicorn inside a service's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.errors import ConfigError
from common.security.credentials import Credentials
from common.security.principals import Rule, principals_of
from common.security.process import own

BACKLOG = 2048
PRINCIPALS = "principals"

log = structlog.get_logger()


class HttpServer:
    """Serves an application until told to stop."""

    def __init__(
        self,
        app: ASGIApp,
        listen: str,
        *,
        grace_s: float,
        credentials: Credentials | None = None,
        rule: Rule | None = None,
    ) -> None:
        """Binds at once. listen: HOST:PORT, port 0 picks a free one. ConfigError if it cannot be had.

        grace_s: how long responses may go on after `stop`. credentials: None for those of this process; with
        TLS this is HTTPS. rule: with TLS, whose certificates open it; None: it asks for none.
        """
        credentials = credentials or own()
        credentials.check_listen(listen)
        credentials.check(server=True)
        context = credentials.server_context(ask=rule is not None) if credentials.secure else None
        self._socket = _bind(listen)
        host, port = self._socket.getsockname()[:2]
        self.address = f"{host}:{port}"
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11" if rule is None or context is None else partial(_Checked, rule),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, round(grace_s)),
                ssl_context_factory=None if context is None else lambda *_: context,
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


class _Checked(H11Protocol):
    """Hangs up on clients whose certificate names nobody that the rule lets in.

    The application finds the names of the others in its scope's state, as `principals`.
    """

    def __init__(self, rule: Rule, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._rule = rule

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Part of asyncio's protocol; TLS is established."""
        super().connection_made(transport)
        names = (transport.get_extra_info("peercert") or {}).get("subjectAltName", ())
        who = principals_of([value for kind, value in names if kind == "URI"])
        self.app_state = {**self.app_state, PRINCIPALS: who}
        if not who & self._rule.allowed:
            log.warning("refused", peer=transport.get_extra_info("peername"), who=sorted(who))
            transport.abort()


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
