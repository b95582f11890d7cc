"""Who may do what at the HTTP door, and whose call it is; the rules are in `common.security.principals`."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from common.doors.connection import PRINCIPALS
from common.errors import PermissionDeniedError, TidePipeError
from common.security.caller import acting_for, with_key, with_principals
from common.security.key_access import KeyAccess, bearer
from common.security.principals import http_rule
from router.gateway.failures import failure


class KeyGate:
    """An ASGI application around another one: lets requests in by key."""

    def __init__(self, app: ASGIApp, access: KeyAccess) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        rule = http_rule(scope.get("path", ""))
        if scope["type"] != "http" or rule.everyone:
            await self._app(scope, receive, send)
            return
        try:
            lease = self._access.enter(bearer(Headers(scope=scope).get("authorization")), *rule.key_roles)
        except TidePipeError as error:
            await failure(error)(scope, receive, send)
            return
        with lease, acting_for(with_key(lease.key)):
            await self._app(scope, receive, send)


class CertificateGate:
    """The same by certificate, for a port that asks for one: who is known may not do everything yet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        who: frozenset[str] | None = scope.get("state", {}).get(PRINCIPALS)
        if scope["type"] != "http" or who is None:  # it speaks no TLS
            await self._app(scope, receive, send)
            return
        rule = http_rule(scope.get("path", ""))
        if not (rule.everyone or who & rule.allowed):
            error = PermissionDeniedError(
                f"{', '.join(sorted(who))} may not ask for this: it is for {', '.join(sorted(rule.allowed))}"
            )
            await failure(error)(scope, receive, send)
            return
        with acting_for(with_principals(who)):
            await self._app(scope, receive, send)
