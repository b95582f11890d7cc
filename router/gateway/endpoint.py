"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from common.openai.failures import error_response
from common.openai.responses import DONE, ResponseContext, response_stream, sse
from common.request import GenerationRequest
from router.gateway.answers import AnswerBodies, raise_error
from router.gateway.body import read_json
from router.gateway.failures import failure
from router.gateway.headers import KEY, REQUEST_ID, request_id, with_targets
from router.gateway.presence import while_connected
from router.requests.caller import known_by_key
from router.requests.subscription import Subscription
from router.requests.table import RequestTable

Parser = Callable[[object, str], GenerationRequest]


class CompletionEndpoint:
    """An ASGI application for one of the two APIs. A client that disconnects cancels its request."""

    def __init__(self, parse: Parser, table: RequestTable, bodies: AnswerBodies) -> None:
        self._parse = parse
        self._table = table
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        request = Request(scope, receive)
        try:
            name = request_id(request.headers)
            parsed = known_by_key(self._parse(await read_json(request), name), request.headers.get(KEY))
            wanted = with_targets(parsed, request.headers)
            subscription = self._table.attach(wanted, grace_s=0.0)
        except ClientDisconnect:
            return
        except Exception as error:
            await failure(error)(scope, receive, send)
            return
        with subscription:
            exchange = _Exchange(self._bodies, wanted, subscription, scope, receive, send)
            await while_connected(receive, exchange.run())


class _Exchange:
    """One call, from the admitted request to the end of the response."""

    def __init__(
        self,
        bodies: AnswerBodies,
        wanted: GenerationRequest,
        subscription: Subscription,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._bodies = bodies
        self._wanted = wanted
        self._subscription = subscription
        self._scope = scope
        self._receive = receive
        self._send = send

    async def run(self) -> None:
        try:
            await self._subscription.admitted()
            if not self._wanted.stream:
                await self._respond()
                return
            context = self._bodies.context(self._wanted, self._subscription)
        except Exception as error:
            await failure(error)(self._scope, self._receive, self._send)
            return
        await self._stream(context)

    async def _respond(self) -> None:
        body = await self._bodies.whole(self._wanted, self._subscription)
        response = JSONResponse(body, headers={REQUEST_ID: self._wanted.request_id})
        await response(self._scope, self._receive, self._send)

    async def _stream(self, context: ResponseContext) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (REQUEST_ID.encode(), self._wanted.request_id.encode("latin-1", "replace")),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        chunks = response_stream(context)
        try:
            async for deltas in self._subscription.deltas():
                raise_error([delta.piece for delta in deltas])
                events = [sse(chunk) for delta in deltas for chunk in chunks.chunks(delta.piece)]
                await self._write(b"".join(events))
            usage = chunks.usage_chunk(self._subscription.entry.usage)
            await self._write((b"" if usage is None else sse(usage)) + DONE)
        except Exception as error:
            # The status has been sent; OpenAI's clients take an error from the stream as well.
            _, body, _ = error_response(error)
            await self._write(sse(body))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, data: bytes) -> None:
        if data:
            # Returns once the connection has room again: until then the answer's log holds what is new.
            message: dict[str, Any] = {"type": "http.response.body", "body": data, "more_body": True}
            await self._send(message)
