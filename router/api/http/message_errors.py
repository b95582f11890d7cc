"""Errors below /v1/messages in Anthropic's form, whoever refuses: a gate, the routes or the endpoint."""

from __future__ import annotations

import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidepipe_common.messages.failures import message_error

PATH = "/v1/messages"
_FIRST_ERROR = 400


class MessageErrors:
    """An ASGI application around all others: retells what fails, as the Messages API has it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        path = scope.get("path", "")
        if scope["type"] == "http" and (path == PATH or path.startswith(PATH + "/")):
            send = _Retold(send).send
        await self._app(scope, receive, send)


class _Retold:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """A message of the application; of an error all at once, at its end."""
        if message["type"] == "http.response.start" and message["status"] >= _FIRST_ERROR:
            self._start = message
        elif self._start is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                start, body = _in_this_form(self._start, self._body)
                await self._send(start)
                await self._send({"type": "http.response.body", "body": body, "more_body": False})


def _in_this_form(start: Message, body: bytes) -> tuple[Message, bytes]:
    headers = Headers(raw=start["headers"])
    if headers.get("content-type") != "application/json":
        return start, body
    said = json.loads(body)["error"]["message"]
    told = message_error(start["status"], said, headers.get("x-request-id"))
    body = json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    retold = MutableHeaders(raw=list(start["headers"]))
    retold["content-length"] = str(len(body))
    return {**start, "headers": retold.raw}, body
