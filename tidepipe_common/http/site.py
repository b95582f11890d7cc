"""Which names a server answers to, and the pages of which sites a browser lets call it.

Without keys a server on the loopback is open to whoever runs on this machine, and a browser runs whatever
page its user looks at. Such a page can send requests to any address (that it cannot read the answer does not
stop them), or have a name of its own lead to 127.0.0.1 (DNS rebinding) and read the answers as well. Browsers
say from where a request comes: Host, Origin and Sec-Fetch-Site. Other programs send no Origin, and are not
asked.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidepipe_common.errors import ConfigError
from tidepipe_common.openai.failures import error_body
from tidepipe_common.security.credentials import is_loopback

ANY = "*"
METHODS = ("GET", "HEAD", "POST", "DELETE")
EXPOSED = ("x-request-id", "retry-after", "retry-after-ms")
PREFLIGHT_S = 600
ONCE = frozenset(
    (
        *(b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"),
        *(b"authorization", b"x-api-key", b"content-type", b"content-encoding", b"content-length", b"expect"),
        *(b"idempotency-key", b"x-slo-ttft-ms", b"x-slo-tpot-ms"),
        *(b"access-control-request-method", b"access-control-request-headers"),
    )
)
"""Headers that decide something, and so may stand there once. `x-request-id` decides nothing."""
_OWN = ("same-origin", "none")
"""`none`: the user typed the address, or it is a bookmark."""
_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Site:
    """hosts: names by which it may be called beside its own; `*.example.com` for all below, `*` for any.

    origins: pages of which sites may call it, such as https://chat.example.com; `*` for any.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def check(self) -> None:
        """ConfigError if one of them can never match."""
        for host in self.hosts:
            if host != ANY and not (_NAME.fullmatch(host) or _address(host)):
                raise ConfigError(f"--allow-host takes a name or an address without a port, got {host!r}")
        for origin in self.origins:
            if origin not in (ANY, "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
                raise ConfigError(
                    f"--allow-origin takes SCHEME://HOST[:PORT] without a path, got {origin!r}; such as "
                    "https://chat.example.com"
                )


def guarded_site(app: ASGIApp, site: Site, *, bound: str, tls: bool) -> ASGIApp:
    """The application behind its gate. bound: name or address on which it listens. ConfigError: see Site."""
    site.check()
    inner = app
    if site.origins:
        inner = CORSMiddleware(
            app,
            allow_origins=site.origins,
            allow_methods=METHODS,
            allow_headers=[ANY],
            expose_headers=EXPOSED,
            max_age=PREFLIGHT_S,
            allow_private_network=True,
        )
    return SiteGate(inner, site, bound=bound, tls=tls)


class SiteGate:
    """An ASGI application around another one: turns away what a browser sends for another site's page."""

    def __init__(self, app: ASGIApp, site: Site, *, bound: str, tls: bool) -> None:
        """tls: a page cannot have a name of its own lead here, for it would need a certificate for it."""
        self._app = app
        self._site = site
        self._bound = bound.strip("[]").lower()
        self._check_host = not tls or bool(site.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (twice := _twice(scope)) is not None:
            await _refusal(400, f"header {twice} stands more than once; send one", twice)(
                scope, receive, send
            )
            return
        reason = self._why_not(scope["method"], headers)
        if reason is None and headers.get("content-encoding", "identity").lower() != "identity":
            await _refusal(415, "bodies come as they are, without content-encoding")(scope, receive, send)
            return
        if reason is not None:
            # An attacker's page asks as often as it likes.
            log.debug("refused", host=headers.get("host"), origin=headers.get("origin"), reason=reason)
            await _refusal(403, reason)(scope, receive, send)
            return
        await self._app(scope, receive, functools.partial(_send_closed, send))

    def _why_not(self, method: str, headers: Headers) -> str | None:
        """Why a request is turned away; None if it is not."""
        host = headers.get("host", "")
        name, port = split_host(host)
        if self._check_host and not self._is_own_name(name):
            return (
                f"this server is not called {name[:100]!r}; call it by its address, or start it with "
                f"--allow-host {name[:100]}"
            )
        origin = headers.get("origin")
        if origin is not None and (origin in self._site.origins or ANY in self._site.origins):
            return None
        fetched = headers.get("sec-fetch-site")
        if fetched in _OWN:
            return None
        if fetched is None and (origin is None or _is_same(origin, name, port)):
            return None
        if origin is None and _is_visit(method, headers):
            return None
        return (
            f"a page of {(origin or 'another site')[:100]} may not call this server from a browser; if it "
            f"shall, start it with --allow-origin {(origin or 'ORIGIN')[:100]}"
        )

    def _is_own_name(self, name: str) -> bool:
        """True for a name or address that nobody else can have lead to us."""
        if not name or _is_local(name) or name == self._bound:
            return True  # without a name it is no browser
        if not is_loopback(self._bound) and (_address(name) is not None or name == _own_name()):
            return True
        return any(_matches(name, host.lower()) for host in self._site.hosts)


def split_host(host: str) -> tuple[str, int | None]:
    """Name in small letters, without brackets and the final dot, and port of a Host header."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        return host, None


def _is_local(name: str) -> bool:
    return is_loopback(name) or name == "localhost" or name.endswith(".localhost")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def _own_name() -> str:
    return socket.gethostname().lower()


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    return pattern in (ANY, name)


def _is_same(origin: str, name: str, port: int | None) -> bool:
    """True if the page came from here. Of old browsers: newer ones say so themselves (Sec-Fetch-Site).

    The scheme may differ, behind a proxy that speaks TLS; then ports that nobody wrote are those of each.
    """
    try:
        parts = urlsplit(origin)
        default = _PORTS.get(parts.scheme)
        if default is None or (parts.hostname or "").removesuffix(".") != name:
            return False
        return (parts.port or default) == (port or default)
    except ValueError:
        return False


def _is_visit(method: str, headers: Headers) -> bool:
    """True if the user follows a link to here: no page can read what then shows, or keep it in a frame."""
    return (
        method in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _twice(scope: Scope) -> str | None:
    """A header of those that decide something which stands there again; else None.

    Who is in front of this server may have gone by the other one.
    """
    seen: set[bytes] = set()
    for name, _ in scope["headers"]:
        if name in ONCE:
            if name in seen:
                return str(name.decode())
            seen.add(name)
    return None


_KINDS = {
    400: ("invalid_request_error", "bad_request"),
    403: ("permission_error", "permission_denied"),
    415: ("invalid_request_error", "unsupported_media_type"),
}


def _refusal(status: int, reason: str, param: str | None = None) -> JSONResponse:
    kind, code = _KINDS[status]
    # The body is left unread.
    headers = {"connection": "close", "x-content-type-options": "nosniff"}
    return JSONResponse(error_body(reason, kind, param, code), status, headers)


async def _send_closed(send: Send, message: Message) -> None:
    """What no other site's page may embed, unless the application itself says so."""
    if message["type"] == "http.response.start":
        message.setdefault("headers", [])
        headers = MutableHeaders(scope=message)
        headers.setdefault("x-content-type-options", "nosniff")
        if "access-control-allow-origin" not in headers:
            headers.setdefault("cross-origin-resource-policy", "same-origin")
    await send(message)


def sites(hosts: str | None, origins: str | None) -> Site:
    """Of the settings allow_host and allow_origin, each with names between commas."""
    return Site(_names(hosts), tuple(name.rstrip("/") for name in _names(origins)))


def _names(given: str | None) -> tuple[str, ...]:
    return tuple((given or "").replace(",", " ").split())
