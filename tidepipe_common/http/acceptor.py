"""The acceptor of connections: as many as there is room for, and never one that keeps others out.

uvicorn leaves that to asyncio, which counts nothing: connections that are in their handshake are no
protocol's yet. So they are accepted here, one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from tidepipe_common.http.connection import Connection, Deadlines
from tidepipe_common.openai.failures import error_body

_AT_A_TIME = 64
_PAUSE_S = 0.2
_LOOK_AGAIN_S = 0.05
_MOST_REMEMBERED = 1024
_SAY_S = 10.0
_TLS_CLOSE_S = 1.0
_FULL_BODY = json.dumps(
    error_body("all connections are in use; try again", "server_error", code="no_connection")
).encode()
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(_FULL_BODY), _FULL_BODY)
)
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = structlog.get_logger()


@dataclass(slots=True)
class Standing:
    """What a door has seen. given_up: connections without a request that made room for others."""

    limit: int
    open: int = 0
    accepted: int = 0
    given_up: int = 0
    refused: int = 0
    out_of_descriptors: int = 0


@dataclass(eq=False, slots=True)
class _Guest:
    """One connection. connected: its handshake is over."""

    address: str
    socket: socket.socket
    protocol: Connection | None = None
    task: asyncio.Task[None] | None = None
    connected: bool = False

    @property
    def waiting(self) -> bool:
        return not self.connected or self.protocol is None or self.protocol.waiting

    @property
    def dawdling(self) -> bool:
        return self.connected and self.protocol is not None and self.protocol.dawdling

    def hang_up(self) -> None:
        if self.connected and self.protocol is not None:
            self.protocol.transport.abort()
            return
        # The handshake ends with an error by that.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class Acceptor:
    """Stands in for asyncio's server in uvicorn's.

    When all places are taken, the connection that has waited longest without a request gives its own up, as
    in nginx; then one whose body comes slowly. Only if all are at work is a new one refused.
    """

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[Callable[[], None]], Connection],
        *,
        deadlines: Deadlines,
        limit: int,
        per_address: int | None,
        context: ssl.SSLContext | None,
    ) -> None:
        """make: a protocol, given what it calls at its end. per_address: of one client's address; None: half
        of `limit`, but for this machine's own addresses, behind which a proxy may stand."""
        self._listening = listening
        self._make = make
        self._deadlines = deadlines
        self._per_address = per_address
        self._context = context
        self._guests: dict[_Guest, None] = {}  # by age
        self._by_address: Counter[str] = Counter()
        self._said = -_SAY_S
        self._none_until: dict[str | None, float] = {}
        self._closed = False
        self._left = False
        self._loop = asyncio.get_running_loop()
        self.standing = Standing(limit)

    def start(self) -> None:
        """Accept from now on."""
        self._listening.setblocking(False)
        self._loop.add_reader(self._listening, self._accept)

    def leave(self) -> None:
        """Accept whom the kernel has let in already, and nobody after them; the port is free then."""
        if not self._left:
            # Who stands in the queue would be hung up on.
            self._accept()
            self._left = True
            self._loop.remove_reader(self._listening)
            self._listening.close()

    def close(self) -> None:
        """Accept nothing more. Part of asyncio's Server."""
        if not self._closed:
            self.leave()
            self._closed = True
            for guest in [*self._guests]:
                if not guest.connected:
                    guest.hang_up()

    async def wait_closed(self) -> None:
        """Part of asyncio's Server; connections are uvicorn's to wait for."""

    def _accept(self) -> None:
        for _ in range(_AT_A_TIME):
            if self._left:
                return
            try:
                accepted, peer = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._out_of_descriptors(error)
                return
            self._take(accepted, str(peer[0]))

    def _take(self, accepted: socket.socket, address: str) -> None:
        accepted.setblocking(False)
        most = self._most(address)
        if self._by_address[address] >= most and not self._make_room(address):
            self._refuse(accepted, address, f"{most} connections of this address are at work")
            return
        if len(self._guests) >= self.standing.limit and not self._make_room(None):
            self._refuse(accepted, address, f"all {self.standing.limit} connections are at work")
            return
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        guest = _Guest(address, accepted)
        guest.protocol = self._make(lambda: self._gone(guest))
        self._guests[guest] = None
        self._by_address[address] += 1
        self.standing.accepted += 1
        self.standing.open = len(self._guests)
        guest.task = self._loop.create_task(self._welcome(guest, guest.protocol))

    async def _welcome(self, guest: _Guest, protocol: Connection) -> None:
        tls = self._context is not None
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                guest.socket,
                ssl=self._context,
                ssl_handshake_timeout=self._deadlines.handshake if tls else None,
                ssl_shutdown_timeout=_TLS_CLOSE_S if tls else None,
            )
            guest.connected = True
        except (OSError, ssl.SSLError, TimeoutError) as error:
            log.debug("no handshake", peer=guest.address, reason=str(error))
            self._gone(guest)
        except BaseException:
            self._gone(guest)
            raise

    def _gone(self, guest: _Guest) -> None:
        if guest not in self._guests:
            return
        del self._guests[guest]
        self.standing.open = len(self._guests)
        self._by_address[guest.address] -= 1
        if not self._by_address[guest.address]:
            del self._by_address[guest.address]

    def _make_room(self, address: str | None) -> bool:
        """The oldest connection without a request (of an address), or with a slow one, gives its place up."""
        now = self._loop.time()
        if now < self._none_until.get(address, 0.0):
            return False
        chosen = self._least_missed(address)
        if chosen is None:
            # Whoever knocks in vain, however often, does not have us look at everybody each time.
            if len(self._none_until) > _MOST_REMEMBERED:
                self._none_until.clear()
            self._none_until[address] = now + _LOOK_AGAIN_S
            return False
        chosen.hang_up()
        self._gone(chosen)
        self.standing.given_up += 1
        self._say("connections run short; those without a request make room for others")
        return True

    def _least_missed(self, address: str | None) -> _Guest | None:
        slow: _Guest | None = None
        for guest in self._guests:
            if address not in (None, guest.address):
                continue
            if guest.waiting:
                return guest
            if slow is None and guest.dawdling:
                slow = guest
        return slow

    def _refuse(self, accepted: socket.socket, address: str, reason: str) -> None:
        self.standing.refused += 1
        with accepted, contextlib.suppress(OSError):
            if self._context is None:
                accepted.send(_FULL)
                accepted.shutdown(socket.SHUT_WR)
                accepted.recv(1 << 16)  # unread bytes would take the answer back
        self._say("a connection was refused", peer=address, reason=reason)

    def _out_of_descriptors(self, error: OSError) -> None:
        """The kernel has none left. Somebody makes room; who stands at the door waits there meanwhile."""
        self.standing.out_of_descriptors += 1
        self._make_room(None)
        self._say("no descriptors are left for connections", reason=error.strerror)
        self._loop.remove_reader(self._listening)
        self._loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if not self._left:
            self._loop.add_reader(self._listening, self._accept)

    def _most(self, address: str) -> int:
        if self._per_address is not None:
            return self._per_address
        own = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        return self.standing.limit if own else max(1, self.standing.limit // 2)

    def _say(self, event: str, **more: object) -> None:
        """In the log, but not once for each."""
        now = self._loop.time()
        if now - self._said >= _SAY_S:
            self._said = now
            log.warning(
                event,
                **more,
                connections=len(self._guests),
                limit=self.standing.limit,
                refused=self.standing.refused,
                given_up=self.standing.given_up,
                advice="raise the limit of open files (ulimit -n, LimitNOFILE), or look who connects",
            )
