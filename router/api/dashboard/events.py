"""GET /admin/events: the page's data as server-sent events."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from starlette.types import Receive, Scope, Send

from router.api.dashboard.feed import PageFeed
from router.api.http.body import while_connected
from router.api.http.failures import failure
from tidepipe_common.errors import PermissionDeniedError, TidePipeError, UnavailableError
from tidepipe_common.http.connection import PRINCIPALS
from tidepipe_common.security.principals import ADMIN

WATCH_S = 3600.0
"""A stream ends then and pages ask again, so that no call is without a deadline."""
SEND_S = 10.0
"""A watcher that takes nothing for so long is gone."""
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store"),
    (b"x-accel-buffering", b"no"),
]

log = structlog.get_logger()


class EventsEndpoint:
    """An ASGI application: one stream for each page that watches.

    With API keys the key gate has looked at the role before; with certificates alone it is looked at here.
    """

    def __init__(self, feed: PageFeed) -> None:
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        who = scope.get("state", {}).get(PRINCIPALS)
        if who is not None and ADMIN not in who:
            error = PermissionDeniedError(f"the page's data needs a certificate that names {ADMIN}")
            await failure(error)(scope, receive, send)
            return
        await while_connected(receive, self._stream(scope, receive, send))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages = self._feed.messages()
        begun = False
        try:
            async with asyncio.timeout(WATCH_S):
                async for message in messages:
                    if not begun:
                        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                        begun = True
                    await _send_within(send, b"data: " + message + b"\n\n")
            if not begun:
                raise UnavailableError("this router is stopping")
            await _send_within(send, b"", more=False)
        except TimeoutError:
            # Without an end the server hangs up, and the page asks again.
            log.info("a page's stream ended: it took nothing, or was open for long")
        except TidePipeError as error:
            await failure(error)(scope, receive, send)
        finally:
            await messages.aclose()


async def _send_within(send: Send, data: bytes, *, more: bool = True) -> None:
    body: dict[str, Any] = {"type": "http.response.body", "body": data, "more_body": more}
    async with asyncio.timeout(SEND_S):
        await send(body)
