"""A path where answers are asked for, in whatever form, and the headers that mean something there."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from router.api.http.body import while_connected
from router.api.http.forms import Asked, Events, Form
from router.requests.entry import Subscription, known_by_key
from router.requests.keyed import KeyedRequests
from router.requests.table import RequestTable
from tidepipe_common.aside import INLINE_BYTES
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.numerals import decimal
from tidepipe_common.security.key_access import presented
from tidepipe_common.telemetry.traces import trace_context
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.request_ids import draw_request_id

REQUEST_ID = "x-request-id"
IDEMPOTENCY_KEY = "idempotency-key"
MAX_ID_CHARACTERS = 256
TTFT = "x-slo-ttft-ms"
TPOT = "x-slo-tpot-ms"
KEYED_GRACE_S = 60.0
"""How long a request with an idempotency key goes on without its client: enough to come back."""


class CompletionEndpoint:
    """An ASGI application for one of the forms in which answers are asked for. A client that disconnects
    cancels its request, unless it can ask for it again: with an idempotency key."""

    def __init__(self, form: Form, table: RequestTable, keyed: KeyedRequests) -> None:
        self._form = form
        self._table = table
        self._keyed = keyed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        request = Request(scope, receive)
        headers = {REQUEST_ID: trace_id(request.headers)}
        try:
            asked = await self._form.read(request)
        except ClientDisconnect:
            return
        except Exception as error:
            await self._form.failure(error, headers)(scope, receive, send)
            return
        await self.answer(asked, request, headers[REQUEST_ID], send)

    async def answer(self, asked: Asked, request: Request, trace: str, send: Send) -> None:
        """Answer what has been read. trace: see `trace_id`."""
        scope, receive = request.scope, request.receive
        try:
            wanted = wanted_by(asked.request, request.headers, trace)
            key = idempotency_key(request.headers)
            if key is None:
                subscription = self._table.attach(wanted, grace_s=0.0)
            else:
                wanted, subscription = await self._attach_keyed(wanted, key)
        except Exception as error:
            await self._form.failure(error, {REQUEST_ID: trace})(scope, receive, send)
            return
        with subscription:
            exchange = _Exchange(self._form, asked, wanted, subscription, scope, receive, send)
            await while_connected(receive, exchange.run())

    async def _attach_keyed(
        self, wanted: GenerationRequest, key: str
    ) -> tuple[GenerationRequest, Subscription]:
        """The request that the key stands for, which goes on for a while when its client is away."""
        wanted.check()
        claim = await self._keyed.claim(wanted.owner, key, wanted)
        wanted = claim.request(wanted)
        # What was read off a prompt is not kept: it is read again, and with it the answer.
        given = () if wanted.sampling.reads_prompt else claim.given
        subscription = self._table.attach(wanted, KEYED_GRACE_S, given=given)
        self._keyed.follow(subscription.entry, claim)
        return wanted, subscription


class _Exchange:
    """One call, from the admitted request to the end of the response."""

    def __init__(
        self,
        form: Form,
        asked: Asked,
        wanted: GenerationRequest,
        subscription: Subscription,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._form = form
        self._asked = asked
        self._wanted = wanted
        self._subscription = subscription
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = {REQUEST_ID: wanted.trace_id}

    async def run(self) -> None:
        try:
            await self._subscription.admitted()
            if not self._wanted.stream:
                await self._respond()
                return
            events = self._asked.events(self._wanted, self._subscription)
        except Exception as error:
            await self._form.failure(error, self._headers)(self._scope, self._receive, self._send)
            return
        await self._stream(events)

    async def _respond(self) -> None:
        body = await self._asked.whole(self._wanted, self._subscription)
        response = Response(body, media_type="application/json", headers=self._headers)
        await response(self._scope, self._receive, self._send)

    async def _stream(self, events: Events) -> None:
        headers = [
            (name.encode(), value.encode("latin-1", "replace"))
            for name, value in stream_headers(self._headers).items()
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await self._write(await events.begin())
            async for deltas in self._subscription.deltas():
                said = b""
                for delta in deltas:
                    said += events.piece(delta.piece)
                    if len(said) > INLINE_BYTES:
                        await self._write(said)
                        said = b""
                        await asyncio.sleep(0)  # there is much to say, and others wait
                await self._write(said)
            await self._write(await events.end(self._subscription.entry.usage))
        except Exception as error:
            # The status has been sent; clients take an error from the stream as well.
            await self._write(await events.failure(error))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, data: bytes) -> None:
        if data:
            # Returns once the connection has room again: until then the answer's log holds what is new.
            message: Message = {"type": "http.response.body", "body": data, "more_body": True}
            await self._send(message)


def stream_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Of a response of server-sent events."""
    return {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
        **headers,
    }


def wanted_by(request: GenerationRequest, headers: Headers, trace: str) -> GenerationRequest:
    """The request with what is said of it beside its body: whose it is, its name in logs, its targets."""
    told = dataclasses.replace(request, trace_id=trace, trace_context=trace_context(headers))
    named = known_by_key(told, presented(headers))
    return with_targets(named, headers)


def trace_id(headers: Headers) -> str:
    """What the caller and its proxies call the request: for answers and logs, so they may repeat it.

    A new one if there is none that can be printed.
    """
    wanted = headers.get(REQUEST_ID, "")
    return wanted if _is_printable(wanted) else draw_request_id()


def idempotency_key(headers: Headers) -> str | None:
    """None: the request is none of those that are asked again. InvalidRequestError if it cannot be a key."""
    key = headers.get(IDEMPOTENCY_KEY)
    if key is not None and not _is_printable(key):
        raise InvalidRequestError(
            f"header Idempotency-Key must have 1 to {MAX_ID_CHARACTERS} printable characters",
            "Idempotency-Key",
        )
    return key


def _is_printable(text: str) -> bool:
    return 0 < len(text) <= MAX_ID_CHARACTERS and text.isprintable()


def with_targets(request: GenerationRequest, headers: Headers) -> GenerationRequest:
    """The request with its latency targets. InvalidRequestError names the header that is wrong."""
    if TTFT not in headers and TPOT not in headers:
        return request
    wanted = dataclasses.replace(request, ttft_ms=_number(headers, TTFT), tpot_ms=_number(headers, TPOT))
    try:
        wanted.check()
    except InvalidRequestError as error:
        header = {"ttft_ms": TTFT, "tpot_ms": TPOT}.get(error.param or "")
        if header is None:
            raise
        raise InvalidRequestError(f"header {header}: {error}", header) from None
    return wanted


def _number(headers: Headers, name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    if (number := decimal(text)) is None:
        raise InvalidRequestError(f"header {name} must be a number of milliseconds, got {text[:40]!r}", name)
    return number
