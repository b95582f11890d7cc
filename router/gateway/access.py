"""API keys at the HTTP door."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import TidePipeError
from common.security.key_access import KeyAccess, bearer
from router.gateway.failures import failure

OPEN = ("/health", "/ready", "/", "/ui")
"""They say nothing but how it stands; probes cannot hold secrets. The page's files hold nothing."""
OPEN_BELOW = "/ui/"
"""What the page shows comes from below /admin."""
ROLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("/metrics", ("admin", "monitor")),
    ("/admin", ("admin",)),
    ("", ("inference", "admin")),
)
"""By the beginning of the path; the first that fits."""


class KeyGate:
    """An ASGI application around another one: lets requests in by key, which they occupy until they end."""

    def __init__(self, app: ASGIApp, access: KeyAccess) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        path = scope.get("path", "")
        if scope["type"] != "http" or path in OPEN or path.startswith(OPEN_BELOW):
            await self._app(scope, receive, send)
            return
        roles = next(roles for begin, roles in ROLES if path.startswith(begin))
        try:
            lease = self._access.enter(bearer(Headers(scope=scope).get("authorization")), *roles)
        except TidePipeError as error:
            await failure(error)(scope, receive, send)
            return
        with lease:
            await self._app(scope, receive, send)
