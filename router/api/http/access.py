"""Access at the HTTP door, and whose call it is; rules: `tidepipe_common.security.principals`."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.api.http.failures import failure
from tidepipe_common.errors import PermissionDeniedError, TidePipeError
from tidepipe_common.http.connection import PRINCIPALS
from tidepipe_common.security.caller import acting_for, with_key, with_principals
from tidepipe_common.security.key_access import KeyAccess, credential
from tidepipe_common.security.principals import http_rule

CUT_AFTER_S = 0.5
"""After its key has ended, a call that does not end by itself is cut."""


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
            lease = self._access.enter(credential(Headers(scope=scope)), *rule.key_roles)
        except TidePipeError as error:
            await failure(error)(scope, receive, send)
            return
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        cut: list[asyncio.TimerHandle] = []

        def end() -> None:
            if task is not None:  # what generates ends by itself, and says why; downloads and feeds do not
                cut.append(loop.call_later(CUT_AFTER_S, task.cancel))

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                limits = self._access.headers(lease.key).items()
                told = [(name.encode(), value.encode()) for name, value in limits]
                message = {**message, "headers": [*message.get("headers", ()), *told]}
            await send(message)

        lease.on_end = end
        try:
            with lease, acting_for(with_key(lease.key)):
                await self._app(scope, receive, send_with_limits)
        except asyncio.CancelledError:
            if not cut or (task is not None and task.uncancel()):
                raise
        finally:
            for timer in cut:
                timer.cancel()


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
