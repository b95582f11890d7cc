"""uvicorn inside a service's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Iterator

import structlog
import uvicorn
from starlette.types import ASGIApp

from tidepipe_common.descriptors import METRICS_CONNECTIONS
from tidepipe_common.errors import ConfigError
from tidepipe_common.http.acceptor import Acceptor, Standing
from tidepipe_common.http.connection import DEADLINES, Connection, Deadlines
from tidepipe_common.http.site import Site, guarded_site
from tidepipe_common.http.untaken import Untaken
from tidepipe_common.numerals import host_and_port
from tidepipe_common.port_sharing import take_all
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.security.principals import Rule
from tidepipe_common.security.process import own

BACKLOG = 2048
_LOOK_S = 0.05

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
        site: Site | None = None,
        connections: int = METRICS_CONNECTIONS,
        connections_per_address: int | None = None,
        deadlines: Deadlines = DEADLINES,
        shared_port: bool = False,
        around: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    ) -> None:
        """Binds at once. listen: HOST:PORT, port 0 picks a free one. ConfigError if it cannot be had.

        grace_s: how long responses may go on after `stop`. credentials: None for those of this process; with
        TLS this is HTTPS. rule: with TLS, whose certificates open it; None: it asks for none.
        site: names it is called by, and whose pages may call it; None: its own. connections: at a time.
        shared_port: a successor may listen beside it. around: what sees whatever is sent, refusals as well.
        """
        credentials = credentials or own()
        credentials.check_listen(listen)
        credentials.check(server=True)
        context = credentials.server_context(ask=rule is not None) if credentials.secure else None
        self._socket = _bind(listen, shared_port)
        self._leaving = asyncio.Event()
        host, port = self._socket.getsockname()[:2]
        self.address = f"{host}:{port}"
        site = site or Site()
        self._server = _Server(
            uvicorn.Config(
                around(guarded_site(app, site, bound=host, tls=context is not None)),
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                # What strangers send is no warning; what goes wrong in the application is an error.
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=round(deadlines.idle),
                timeout_graceful_shutdown=max(1, round(grace_s)),
            ),
            functools.partial(
                Acceptor,
                self._socket,
                deadlines=deadlines,
                limit=connections,
                per_address=connections_per_address,
                context=context,
            ),
            functools.partial(
                Connection,
                deadlines=deadlines,
                rule=None if context is None else rule,
                untaken=Untaken(),
                leaving=self._leaving,
            ),
        )

    @property
    def standing(self) -> Standing | None:
        """Its connections; None before it runs."""
        return None if self._server.acceptor is None else self._server.acceptor.standing

    async def run(self) -> None:
        """Serve until `stop` and the end of the responses."""
        log.info("HTTP", address=self.address)
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._socket.close()

    def take_all(self) -> None:
        """Who listened on the port before gets no new connections any more."""
        take_all(self._socket)

    def leave(self) -> None:
        """Answer what comes as before, but end each connection with its next response.

        So clients find a successor, without any request that is cut.
        """
        self._leaving.set()

    async def emptied(self, patience_s: float) -> None:
        """Accept nobody more; return when the last connection has ended, or after `patience_s` seconds.

        One that is idle is not closed, which could meet its next request; clients let go of it, or its
        deadline ends it.
        """
        acceptor = self._server.acceptor
        if acceptor is None:
            return
        acceptor.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while acceptor.standing.open:  # noqa: ASYNC110 (each connection would have to say it)
                    await asyncio.sleep(_LOOK_S)

    def stop(self, grace_s: float | None = None) -> None:
        """Accept nothing more, and let `run` return when the responses have ended. grace_s: another one."""
        if grace_s is not None:
            self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, accept: Callable[..., Acceptor], connect: Callable[..., Connection]
    ) -> None:
        super().__init__(config)
        self._accept = accept
        self._connect = connect
        self.acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Part of uvicorn's Server: begins to accept, with limits that asyncio's own server has not."""
        await self.lifespan.startup()

        def make(ended: Callable[[], None]) -> Connection:
            return self._connect(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                ended=ended,
            )

        self.acceptor = self._accept(make)
        self.acceptor.start()
        self.servers = [self.acceptor]  # type: ignore[list-item]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's business, not uvicorn's."""
        yield


def _bind(listen: str, shared_port: bool) -> socket.socket:
    parts = host_and_port(listen)
    if parts is None:
        raise ConfigError(f"the HTTP address must be HOST:PORT, got {listen!r}")
    host, port = parts
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address = (host.strip("[]"), port)
        return socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=shared_port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {listen} for HTTP: {error.strerror or error}; choose another port"
        ) from error
