"""/v1/messages: Anthropic's form in which answers are asked for and said."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from router.api.http.answers import AnswerBodies, ended_answers
from router.api.http.body import read_json
from router.api.http.failures import failure
from router.api.http.forms import Asked, Events
from router.requests.admission import Admission
from router.requests.entry import Subscription
from router.requests.text_port import TextPort, TooManyTokensError
from tidepipe_common.aside import ROOM, beside
from tidepipe_common.dialects.parts import Part, Words
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_PROMPT_TOKENS
from tidepipe_common.messages.body import in_our_names, parse_count, parse_message
from tidepipe_common.messages.failures import message_failure
from tidepipe_common.messages.writer import Event, MessageWriter, message_sse
from tidepipe_common.openai.responses import ResponseContext, answer_bytes, check_uncut
from tidepipe_common.types.request import Answer, GenerationRequest, Usage
from tidepipe_common.types.request_ids import draw_request_id


class MessagesForm:
    """A Form."""

    def __init__(self, bodies: AnswerBodies) -> None:
        self._bodies = bodies

    async def read(self, request: Request) -> Asked:
        """Part of Form."""
        parsed = await read_json(request, lambda body: parse_message(body, draw_request_id()))
        return _Message(parsed, self._bodies)

    def failure(self, error: Exception, headers: Mapping[str, str]) -> Response:
        """Part of Form."""
        return failure(in_our_names(error) if isinstance(error, InvalidRequestError) else error, headers)


class MessageTokensEndpoint:
    """POST /v1/messages/count_tokens: how long the prompt of a message would be."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def answer(self, request: Request) -> Response:
        """Answer one call."""
        try:
            asked = await read_json(request, lambda body: parse_count(body, draw_request_id()))
            asked.check()
            text, _ = await self._admission.model(asked.model)
            with ROOM.share() as share:
                share.grow(asked.characters)
                count = await self._admission.beside(asked.characters, lambda: _count(asked, text))
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        except Exception as error:
            return failure(error)
        return JSONResponse({"input_tokens": count})


def _count(asked: GenerationRequest, text: TextPort) -> int:
    try:
        return len(text.encode_chat(asked.turns, asked.tools, MAX_PROMPT_TOKENS, asked.template))
    except TooManyTokensError as error:
        raise InvalidRequestError(
            f"messages may have {error.at_least} tokens; it has more", "messages"
        ) from None


@dataclass(frozen=True, slots=True)
class _Message:
    request: GenerationRequest
    bodies: AnswerBodies

    async def whole(self, wanted: GenerationRequest, subscription: Subscription) -> bytes:
        [answer] = await ended_answers(subscription)
        usage = subscription.entry.usage
        telling = _Telling(self.bodies.context(wanted, subscription))
        return await beside(
            answer_bytes(wanted, usage.output_tokens), functools.partial(telling.whole, answer, usage)
        )

    def events(self, wanted: GenerationRequest, subscription: Subscription) -> Events:
        return _Stream(_Telling(self.bodies.context(wanted, subscription)))


class _Telling:
    """One answer, read as it comes."""

    def __init__(self, context: ResponseContext) -> None:
        self.context = context
        self.writer = MessageWriter(context.request.request_id, context.model, context.call_id(0))
        self.reader = context.reader()
        self.last: Answer | None = None

    def say(self, piece: Answer) -> list[Event]:
        """The next piece. Raises what cut it."""
        check_uncut([piece])
        if piece.finish_reason is not None:
            self.last = piece
        return self.writer.say(self._parts(piece))

    def _parts(self, piece: Answer) -> Sequence[Part]:
        if self.reader is None:
            return [Words(piece.text)] if piece.text else []
        parts = self.reader.feed(piece.text)
        return [*parts, *self.reader.end()] if piece.finish_reason is not None else parts

    def end(self, usage: Usage) -> tuple[list[Event], Event]:
        """The last events, and the message as a whole."""
        assert self.last is not None, "an answer that has not ended was not whole"
        if self.reader is not None and self.reader.warning:
            self.context.notice(self.reader.warning)
        return self.writer.end(usage, self.last.finish_reason, self.last.stopped_by)

    def whole(self, answer: Answer, usage: Usage) -> bytes:
        """The body of all of it."""
        self.say(answer)
        _, message = self.end(usage)
        return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


@dataclass(slots=True)
class _Stream:
    telling: _Telling

    async def begin(self) -> bytes:
        prompt_tokens = self.telling.context.prompt_tokens
        return b"".join(map(message_sse, self.telling.writer.begin(prompt_tokens)))

    def piece(self, piece: Answer) -> bytes:
        return b"".join(map(message_sse, self.telling.say(piece)))

    async def end(self, usage: Usage) -> bytes:
        events, _ = self.telling.end(usage)
        return b"".join(map(message_sse, events))

    async def failure(self, error: Exception) -> bytes:
        _, body, _ = message_failure(error, self.telling.context.request.trace_id)
        return message_sse(dict(body))
