"""Forms in which answers are asked for and said: chats and completions here, others beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from router.api.http.answers import AnswerBodies
from router.api.http.body import read_json
from router.api.http.failures import failure
from router.requests.entry import Subscription
from tidepipe_common.openai.failures import error_response
from tidepipe_common.openai.responses import DONE, ResponseStream, response_stream, sse
from tidepipe_common.types.request import Answer, GenerationRequest, Usage
from tidepipe_common.types.request_ids import draw_request_id

Parser = Callable[[object, str], GenerationRequest]
"""A request from a decoded body and the id that it gets; InvalidRequestError."""


class Events(Protocol):
    """One request's answer as server-sent events, in the order in which it comes."""

    async def begin(self) -> bytes:
        """What is said before there is anything of the answer."""
        ...

    def piece(self, piece: Answer) -> bytes:
        """The next piece of one of the answers. Raises what cut it, before it is said that it has ended."""
        ...

    async def end(self, usage: Usage) -> bytes:
        """Everything has been said."""
        ...

    async def failure(self, error: Exception) -> bytes:
        """It ends otherwise; also because `piece` or `end` raised this."""
        ...


class Asked(Protocol):
    """What one body asks for, and how the answer is said. `wanted` is `request` as it was admitted: with its
    owner, and under the id that its idempotency key stands for."""

    @property
    def request(self) -> GenerationRequest:
        """As the body has it."""
        ...

    async def whole(self, wanted: GenerationRequest, subscription: Subscription) -> bytes:
        """The body once all has been answered. Raises what went wrong, also if an answer was cut."""
        ...

    def events(self, wanted: GenerationRequest, subscription: Subscription) -> Events:
        """The same as a stream, for a request that has been admitted."""
        ...


class Form(Protocol):
    """How one API asks, and says that something is wrong."""

    async def read(self, request: Request) -> Asked:
        """What a call asks for; InvalidRequestError and others if that cannot be read."""
        ...

    def failure(self, error: Exception, headers: Mapping[str, str]) -> Response:
        """The response for an error; headers: additional ones."""
        ...


class CompletionForm:
    """A Form: OpenAI's chats, or its completions."""

    def __init__(self, parse: Parser, bodies: AnswerBodies) -> None:
        self._parse = parse
        self._bodies = bodies

    async def read(self, request: Request) -> Asked:
        """Part of Form."""
        parsed = await read_json(request, lambda body: self._parse(body, draw_request_id()))
        return _Completion(parsed, self._bodies)

    def failure(self, error: Exception, headers: Mapping[str, str]) -> Response:
        """Part of Form."""
        return failure(error, headers)


@dataclass(frozen=True, slots=True)
class _Completion:
    request: GenerationRequest
    bodies: AnswerBodies

    async def whole(self, wanted: GenerationRequest, subscription: Subscription) -> bytes:
        return await self.bodies.written(wanted, subscription)

    def events(self, wanted: GenerationRequest, subscription: Subscription) -> Events:
        return _Chunks(response_stream(self.bodies.context(wanted, subscription)))


@dataclass(frozen=True, slots=True)
class _Chunks:
    chunks: ResponseStream

    async def begin(self) -> bytes:
        return b""

    def piece(self, piece: Answer) -> bytes:
        return b"".join(sse(chunk) for chunk in self.chunks.chunks(piece))

    async def end(self, usage: Usage) -> bytes:
        chunk = self.chunks.usage_chunk(usage)
        return (b"" if chunk is None else sse(chunk)) + DONE

    async def failure(self, error: Exception) -> bytes:
        _, body, _ = error_response(error)
        return sse(body)
