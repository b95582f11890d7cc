"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from common.errors import TidePipeError
from common.openai.failures import error_response
from common.openai.responses import DONE, ResponseContext, response_body, response_stream, sse
from common.request import Answer, GenerationRequest
from common.sampling import FinishReason
from router.gateway.body import read_json
from router.gateway.collector import AnswerCollector
from router.gateway.failures import failure
from router.gateway.headers import REQUEST_ID, request_id, with_targets
from router.gateway.presence import while_connected
from router.requests.subscription import Subscription
from router.requests.table import RequestTable
from router.requests.text_port import TextPort

Parser = Callable[[object, str], GenerationRequest]


class CompletionEndpoint:
    """An ASGI application for one of the two APIs. A client that disconnects cancels its request."""

    def __init__(
        self, parse: Parser, table: RequestTable, model_name: str, text: Callable[[], TextPort | None]
    ) -> None:
        """text: the tokenizer, once it is loaded; spells the tokens of log-probabilities."""
        self._parse = parse
        self._table = table
        self._model_name = model_name
        self._text = text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        request = Request(scope, receive)
        try:
            name = request_id(request.headers)
            wanted = with_targets(self._parse(await read_json(request), name), request.headers)
            subscription = self._table.attach(wanted, grace_s=0.0)
        except ClientDisconnect:
            return
        except Exception as error:
            await failure(error)(scope, receive, send)
            return
        with subscription:
            exchange = _Exchange(self, wanted, subscription, scope, receive, send)
            await while_connected(receive, exchange.run())

    def context(self, wanted: GenerationRequest, subscription: Subscription) -> ResponseContext:
        """What bodies say besides the answer; the request has been admitted."""
        text = self._text()
        prompt = subscription.entry.answers[0].prompt
        return ResponseContext(
            request=wanted,
            model=self._model_name,
            created=int(time.time()),
            token_bytes=None if text is None else text.token_bytes,
            prompt_token_ids=tuple(prompt) if wanted.return_token_ids else (),
            prompt_tokens=len(prompt),
            prompt_text=_prompt_text(wanted, prompt, text) if wanted.echo else "",
        )


class _Exchange:
    """One call, from the admitted request to the end of the response."""

    def __init__(
        self,
        endpoint: CompletionEndpoint,
        wanted: GenerationRequest,
        subscription: Subscription,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._endpoint = endpoint
        self._wanted = wanted
        self._subscription = subscription
        self._scope = scope
        self._receive = receive
        self._send = send

    async def run(self) -> None:
        try:
            await self._subscription.admitted()
            context = self._endpoint.context(self._wanted, self._subscription)
            if not self._wanted.stream:
                await self._respond(context)
                return
        except Exception as error:
            await failure(error)(self._scope, self._receive, self._send)
            return
        await self._stream(context)

    async def _respond(self, context: ResponseContext) -> None:
        collector = AnswerCollector()
        async for deltas in self._subscription.deltas():
            for delta in deltas:
                collector.add(delta.piece)
        answers = collector.answers()
        _raise_error(answers)
        body = response_body(context, answers, self._subscription.entry.usage)
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
                _raise_error([delta.piece for delta in deltas])
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


def _raise_error(pieces: list[Answer]) -> None:
    for piece in pieces:
        if piece.finish_reason is FinishReason.ERROR:
            raise TidePipeError(piece.error or "the answer could not be finished")


def _prompt_text(wanted: GenerationRequest, prompt: Sequence[int], text: TextPort | None) -> str:
    """The prompt as it was sent, or what its token ids stand for."""
    if isinstance(wanted.prompt, str):
        return wanted.prompt
    spelled = b"".join(text.token_bytes(token) for token in prompt) if text is not None else b""
    return spelled.decode("utf-8", "replace")
