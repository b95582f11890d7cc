"""One HTTP connection: strict about where a request ends, and with a deadline for each part of it.

What uvicorn and h11 do not do by themselves. h11 takes a request with both Content-Length and
Transfer-Encoding, repeated lengths, folded lines and bare line feeds, about which proxies in front of it may
think otherwise: then one client's bytes become another one's request. uvicorn waits for the rest of a request
for ever.
"""

from __future__ import annotations

import asyncio
import json
import re
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
import structlog
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from tidepipe_common.http.unhurried import unhurried
from tidepipe_common.http.untaken import Untaken
from tidepipe_common.openai.failures import error_body
from tidepipe_common.security.principals import Rule, principals_of

MAX_HEAD_BYTES = 16 * 1024
"""Of request line and headers together, and so of a path and its query."""
FEW_CHUNKS, MIN_CHUNK_BYTES = 2048, 64
"""Of a body that comes in chunks; those of every client that means it are larger."""
PRINCIPALS = "principals"
_CLOSE_S = 2.0
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:", re.IGNORECASE)
_ENCODING = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_FOLDED = re.compile(rb"\r\n[ \t]")
_VERSION = re.compile(rb"[^\r\n]* HTTP/([0-9]+(?:\.[0-9]+)?)\r\n")
_VERSIONS = (b"1.0", b"1.1")
_QUOTED = re.compile(r": bytearray\(.*", re.DOTALL)
"""What h11 says after its words: the bytes, as Python writes them."""
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")
_ABSOLUTE = re.compile(rb"https?://([^/?#@\s]+)([/?][^#]*)?", re.IGNORECASE)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that a client may take; rates in bytes a second.

    handshake: TLS. head: up to the end of the headers, from the connection or from the first byte of the next
    request. idle: between two requests. A body must come at `body_rate` on average after `body_grace`, and
    within `body` altogether; one that took `dawdle` and comes more slowly than `dawdle_rate` gives its
    place up if there is no other. stalled: a client that takes nothing of its response.
    """

    handshake: float = 10.0
    head: float = 15.0
    idle: float = 30.0
    body_grace: float = 20.0
    body_rate: float = 8 * 1024
    body: float = 3600.0
    dawdle: float = 2.0
    dawdle_rate: float = 64 * 1024
    stalled: float = 120.0


DEADLINES = Deadlines()


class StrictConnection(h11.Connection):
    """h11's server side, which takes no request whose end could be read in two ways."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._chunks = 0
        self._chunk_bytes = 0
        self.refusal = (400, "the request is not HTTP")

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Part of h11.Connection."""
        try:
            if self.their_state is h11.IDLE:
                check_head(self.trailing_data[0])
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._chunks = self._chunk_bytes = 0
                if event.http_version < b"1.1":
                    _check_old(event)
                event = _in_origin_form(event)
            elif isinstance(event, h11.Data):
                self._count(event)
            return event
        except h11.RemoteProtocolError as error:
            self.refusal = (error.error_status_hint, _QUOTED.sub("", str(error)))
            raise

    def _count(self, data: h11.Data) -> None:
        """One of a byte takes as long as one of 64 KiB, and what is read at once has 40,000 of them."""
        self._chunks += data.chunk_start
        self._chunk_bytes += len(data.data)
        if self._chunks > FEW_CHUNKS and self._chunk_bytes < MIN_CHUNK_BYTES * self._chunks:
            raise h11.RemoteProtocolError(
                f"more than {FEW_CHUNKS} chunks must have {MIN_CHUNK_BYTES} bytes or more on average"
            )


def check_head(received: bytes) -> None:
    """h11.RemoteProtocolError if what was received of a head can be read in two ways, or is too long."""
    head, ended, _ = received.partition(b"\r\n\r\n")
    if len(head) > MAX_HEAD_BYTES:
        raise h11.RemoteProtocolError(
            f"request line and headers may have {MAX_HEAD_BYTES} bytes", error_status_hint=431
        )
    # A carriage return at the end of what has come may get its line feed yet.
    if _BARE.search(head if ended else head.removesuffix(b"\r")):
        raise h11.RemoteProtocolError("lines of a head end with carriage return and line feed")
    if _FOLDED.search(head):
        raise h11.RemoteProtocolError("a header is one line")
    _check_version(head + b"\r\n" if ended else head)
    lengths, encodings = len(_LENGTH.findall(head)), len(_ENCODING.findall(head))
    if lengths > 1 or encodings > 1 or (lengths and encodings):
        raise h11.RemoteProtocolError("a body has one Content-Length, or one Transfer-Encoding, and not both")


def _check_version(head: bytes) -> None:
    """Of a request line that is one; what it is otherwise, h11 says."""
    version = _VERSION.match(head)
    if version is not None and version[1] not in _VERSIONS:
        raise h11.RemoteProtocolError(
            f"HTTP/{version[1].decode()} is not spoken here, but HTTP/1.1", error_status_hint=505
        )


def _in_origin_form(request: h11.Request) -> h11.Request:
    """The request as it would be without a proxy: `GET http://host/path` is `GET /path` to that host.

    Servers must take that form, and go by its host instead of the header's (RFC 9112, 3.2.2).
    """
    target = _ABSOLUTE.fullmatch(request.target)
    if target is None:
        if _SCHEME.match(request.target):
            raise h11.RemoteProtocolError("a target begins with /, or with http:// and a host")
        return request
    rest = target[2] or b"/"
    headers = [(name, value) for name, value in request.headers if name != b"host"]
    return h11.Request(
        method=request.method,
        target=rest if rest.startswith(b"/") else b"/" + rest,
        headers=[(b"host", target[1]), *headers],
        http_version=request.http_version,
    )


def _check_old(request: h11.Request) -> None:
    if any(name == b"transfer-encoding" for name, _ in request.headers):
        raise h11.RemoteProtocolError("HTTP/1.0 knows no Transfer-Encoding")


class Connection(H11Protocol):
    """One client. `ended` is called once it has gone."""

    def __init__(
        self,
        *,
        ended: Callable[[], None],
        deadlines: Deadlines,
        rule: Rule | None,
        untaken: Untaken,
        leaving: asyncio.Event | None = None,
        **arguments: Any,
    ) -> None:
        """rule: whose certificates open it, None: it asks for none; names stand in the scope's state.

        untaken: of all connections of this door. leaving: once it is set, the next response is the last one.
        """
        self._leaving = leaving
        super().__init__(**arguments)
        self.conn: StrictConnection = StrictConnection()
        self._ended = ended
        self._deadlines = deadlines
        self._rule = rule
        self._untaken = untaken
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._body_began = 0.0
        self._body_bytes = 0
        self._over = False

    @property
    def address(self) -> str:
        """Its client's, without the port."""
        return str((self.transport.get_extra_info("peername") or ("",))[0])

    @property
    def waiting(self) -> bool:
        """True if it has no request that is being read or answered: nobody misses it."""
        answered = self.cycle is None or self.cycle.response_complete
        return self._over or (answered and self.conn.their_state is h11.IDLE)

    @property
    def dawdling(self) -> bool:
        """True if its request is on its way for long, and comes slowly: only its sender misses it."""
        if self._body_timer is None or self.flow.read_paused or self.cycle.response_started:
            return False
        elapsed = self.loop.time() - self._body_began
        limits = self._deadlines
        return elapsed >= limits.dawdle and self._body_bytes < limits.dawdle_rate * elapsed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Part of asyncio's protocol; TLS is established."""
        super().connection_made(transport)
        self.transport = unhurried(transport, self._deadlines.stalled)  # type: ignore[assignment]
        self._expect_head()
        if self._rule is None:
            return
        names = (transport.get_extra_info("peercert") or {}).get("subjectAltName", ())
        who = principals_of([value for kind, value in names if kind == "URI"])
        self.app_state = {**self.app_state, PRINCIPALS: who}
        if not who & self._rule.allowed:
            log.warning("refused", peer=transport.get_extra_info("peername"), who=sorted(who))
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio's protocol."""
        for timer in (self._head_timer, self._body_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._untaken.flows(self)
        try:
            super().connection_lost(exc)
        finally:
            self._unset_keepalive_if_required()
            self._ended()

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        if not self._over and not self.transport.is_closing():
            self._body_bytes += len(data)
            super().data_received(data)

    def handle_events(self) -> None:
        """Part of uvicorn's protocol: whatever came is dealt with; then see what is still to come."""
        super().handle_events()
        if self._leaving is not None and self._leaving.is_set():
            self._say_goodbye()
        if self._over or self.transport.is_closing():
            return
        theirs = self.conn.their_state
        if theirs is not h11.IDLE and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if theirs is h11.IDLE and self.conn.trailing_data[0]:
            self._expect_head()
        if theirs is h11.SEND_BODY:
            self._expect_body()
        elif self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def shutdown(self) -> None:
        """Part of uvicorn's protocol: the server stops. A request that is here already is answered yet."""
        if self.waiting and (self.conn.trailing_data[0] or self._has_arrived()):
            return
        super().shutdown()

    def _has_arrived(self) -> bool:
        """True if bytes came that the loop has not looked at; closed now, they would be a cut request."""
        there = self.transport.get_extra_info("socket")
        if there is None or there.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(there.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _say_goodbye(self) -> None:
        """uvicorn ends a connection whose client wants that, and says so to it."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_started and CLOSE_HEADER not in cycle.scope["headers"]:
            cycle.scope["headers"] = [*cycle.scope["headers"], CLOSE_HEADER]

    def send_400_response(self, msg: str) -> None:
        """Part of uvicorn's protocol: the request is none."""
        self._refuse(*self.conn.refusal)

    def pause_writing(self) -> None:
        """Part of asyncio's protocol: the client takes nothing."""
        super().pause_writing()
        self._untaken.stalls(self)
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._deadlines.stalled, self.transport.abort)

    def resume_writing(self) -> None:
        """Part of asyncio's protocol."""
        super().resume_writing()
        self._untaken.flows(self)
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._deadlines.head, self._head_is_late)

    def _head_is_late(self) -> None:
        # A loop that was busy looks at its timers before it looks at what has come meanwhile.
        self._head_timer = self.loop.call_later(_GRACE_S, self._end_late_head)

    def _end_late_head(self) -> None:
        self._head_timer = None
        if not self.conn.trailing_data[0]:
            self.transport.close()
            return
        self._refuse(408, f"the headers did not arrive within {self._deadlines.head:g} s")

    def _expect_body(self) -> None:
        if self._body_timer is None:
            self._body_began, self._body_bytes = self.loop.time(), 0
            self._body_timer = self.loop.call_later(_LOOK_S, self._look_at_body)

    def _look_at_body(self) -> None:
        limits, elapsed = self._deadlines, self.loop.time() - self._body_began
        if self.flow.read_paused:
            self._body_began += _LOOK_S  # it is we who are slow
        elif elapsed > limits.body or self._body_bytes < limits.body_rate * (elapsed - limits.body_grace):
            self._body_timer = None
            self._refuse(
                408,
                f"the body came too slowly: {limits.body_rate:g} bytes a second are the least, and "
                f"{limits.body:g} s the most",
            )
            return
        self._body_timer = self.loop.call_later(_LOOK_S, self._look_at_body)

    def _refuse(self, status: int, reason: str) -> None:
        """Say why, as far as that is possible still, and hang up."""
        for timer in (self._head_timer, self._body_timer):
            if timer is not None:
                timer.cancel()
        if self.cycle is not None and not self.cycle.response_complete:
            begun = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            begun = False
        if not begun and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            code = "request_timeout" if status == 408 else "bad_request"
            body = json.dumps(error_body(reason, "invalid_request_error", code=code)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES.get(status, b"")),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        elif begun:
            self.transport.abort()
        self._over = True
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            # Closed with bytes unread, the answer would be lost on its way: they are thrown away for a while.
            self.transport.write_eof()
        else:
            self.transport.close()
        self.loop.call_later(_CLOSE_S, self.transport.abort)


_GRACE_S = 0.05
_LOOK_S = 2.0
