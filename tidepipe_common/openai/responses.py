"""Response bodies of both APIs, whole or as chunks of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tidepipe_common.errors import TidePipeError, UnavailableError
from tidepipe_common.openai.logprobs import TextOffsets, TokenBytes, chat_logprobs, completion_logprobs
from tidepipe_common.types.request import Answer, GenerationRequest, Usage
from tidepipe_common.types.sampling import FinishReason

DONE = b"data: [DONE]\n\n"
"""Ends a stream of server-sent events."""
_TOKEN_BYTES, _LOGPROB_BYTES = 12, 90
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
"""Those that OpenAI's API has; no client knows another one."""


@dataclass(frozen=True, slots=True)
class ResponseContext:
    """What a body says besides the answer.

    created: Unix time, seconds.
    token_bytes: needed for log-probabilities.
    prompt_token_ids: needed if the request wants token ids.
    prompt_tokens: needed if it wants the usage so far. prompt_text: needed if it wants the prompt back.
    hidden: tells tokens that are not in the text, such as special ones.
    """

    request: GenerationRequest
    model: str
    created: int
    token_bytes: TokenBytes | None = None
    prompt_token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    prompt_text: str = ""
    hidden: Callable[[int], bool] | None = None

    def head(self, prefix: str, what: str) -> dict[str, Any]:
        """The fields with which each body begins."""
        return {
            "id": f"{prefix}-{self.request.request_id}",
            "object": what,
            "created": self.created,
            "model": self.model,
        }

    def text(self, answer: Answer) -> str:
        """Text of an answer, with its stop string if the request wants to see that."""
        ended_by = answer.stopped_by if self.request.include_stop else None
        return answer.text + (ended_by if isinstance(ended_by, str) else "")

    def echoed(self) -> str:
        """The prompt, if the request wants it back."""
        return self.prompt_text if self.request.echo else ""

    def token_ids(self, answer: Answer) -> dict[str, Any]:
        """Token ids, if the request wants them."""
        return {"token_ids": list(answer.token_ids)} if self.request.return_token_ids else {}

    def prompt_ids(self) -> dict[str, Any]:
        """Token ids of the prompt, if the request wants them."""
        return {"prompt_token_ids": list(self.prompt_token_ids)} if self.request.return_token_ids else {}

    def chat_logprobs(self, answer: Answer) -> dict[str, Any] | None:
        """Log-probabilities of a chat answer, if the request wants them and there are tokens."""
        if not self._logprobs_wanted(answer) or self.token_bytes is None:
            return None
        return chat_logprobs(answer.logprobs, self.token_bytes)

    def completion_logprobs(self, answer: Answer, offsets: TextOffsets) -> dict[str, Any] | None:
        """Log-probabilities of a completion, if the request wants them and there are tokens."""
        if not self._logprobs_wanted(answer) or self.token_bytes is None:
            return None
        return completion_logprobs(answer.logprobs, self.token_bytes, offsets)

    def text_offsets(self) -> TextOffsets:
        """Where the tokens of one answer stand in its text; follows the answer from its beginning."""
        return TextOffsets(self._text_bytes)

    def ending(self, answer: Answer) -> dict[str, Any]:
        """Why an answer ended. An end of text is an ordinary one, and stop_reason null, unless asked for."""
        reason = None if answer.finish_reason is None else answer.finish_reason.value
        by = answer.stopped_by
        if isinstance(by, int) and by not in self.request.sampling.stop_token_ids:
            by = None
        return {"finish_reason": reason, "stop_reason": by}

    def _text_bytes(self, token_id: int) -> bytes:
        if self.token_bytes is None or (self.hidden is not None and self.hidden(token_id)):
            return b""
        return self.token_bytes(token_id)

    def _logprobs_wanted(self, answer: Answer) -> bool:
        return self.request.sampling.logprobs is not None and bool(answer.logprobs)


def usage_body(usage: Usage) -> dict[str, int]:
    """The `usage` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


def chat_completion_body(context: ResponseContext, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
    """Body of a finished chat."""
    choices = [
        {
            "index": answer.index,
            "message": {"role": "assistant", "content": context.text(answer), "refusal": None},
            "logprobs": context.chat_logprobs(answer),
            **context.ending(answer),
            **context.token_ids(answer),
        }
        for answer in answers
    ]
    head = context.head("chatcmpl", "chat.completion")
    return {**head, "choices": choices, "usage": usage_body(usage), **context.prompt_ids()}


def completion_body(context: ResponseContext, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
    """Body of a finished completion."""
    choices = [
        {
            "index": answer.index,
            "text": context.echoed() + context.text(answer),
            "logprobs": context.completion_logprobs(answer, context.text_offsets()),
            **context.ending(answer),
            **context.token_ids(answer),
            **context.prompt_ids(),
        }
        for answer in answers
    ]
    return {**context.head("cmpl", "text_completion"), "choices": choices, "usage": usage_body(usage)}


def response_body(context: ResponseContext, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
    """Body of a finished request of either API. Raises as `check_uncut`."""
    check_uncut(answers)
    how = chat_completion_body if context.request.is_chat else completion_body
    return how(context, answers, usage)


def answer_bytes(request: GenerationRequest, tokens: int) -> int:
    """About how large a body will be."""
    logprobs = request.sampling.logprobs
    return tokens * (_TOKEN_BYTES + (0 if logprobs is None else _LOGPROB_BYTES * (logprobs + 1)))


def check_uncut(pieces: Sequence[Answer]) -> None:
    """Raise what happened if one of these answers, or last pieces of answers, was cut.

    OpenAI's clients take every answer for a whole one: what was cut is an error there, or an error event.
    """
    for piece in pieces:
        match piece.finish_reason:
            case None | FinishReason.STOP | FinishReason.LENGTH:
                pass
            case FinishReason.CANCELLED:
                raise UnavailableError("the answer was cancelled before it was complete; ask again")
            case FinishReason.DEADLINE:
                raise UnavailableError("the answer was not complete within its time")
            case _:
                raise TidePipeError(piece.error or "the answer could not be finished")


class ResponseStream(Protocol):
    """Makes the chunks of one request's stream."""

    def chunks(self, piece: Answer) -> list[dict[str, Any]]:
        """Chunks for the next piece of one of the answers: its new tokens and text.

        Raises as `check_uncut`, before anything says that the answer has ended.
        """
        ...

    def usage_chunk(self, usage: Usage) -> dict[str, Any] | None:
        """The last chunk, if the request wants to see the usage."""
        ...


def response_stream(context: ResponseContext) -> ResponseStream:
    """Stream of either API."""
    return _ChatStream(context) if context.request.is_chat else _CompletionStream(context)


def sse(chunk: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(chunk, allow_nan=False, separators=(',', ':'))}\n\n".encode()


@dataclass(slots=True)
class _ChatStream:
    context: ResponseContext
    _begun: set[int] = field(default_factory=set)
    _output_tokens: int = 0

    def chunks(self, piece: Answer) -> list[dict[str, Any]]:
        check_uncut([piece])
        context, result = self.context, []
        self._output_tokens += len(piece.token_ids)
        if piece.index not in self._begun:
            prompt_ids = {} if self._begun else context.prompt_ids()
            self._begun.add(piece.index)
            opening = {"role": "assistant", "content": ""}
            result.append(self._chunk({"index": piece.index, "delta": opening}) | prompt_ids)
        text = context.text(piece)
        if text or piece.token_ids:
            logprobs, ids = context.chat_logprobs(piece), context.token_ids(piece)
            delta = {"index": piece.index, "delta": {"content": text}, "logprobs": logprobs}
            result.append(self._chunk(delta | ids))
        if piece.finish_reason is not None:
            result.append(self._chunk({"index": piece.index, "delta": {}, **context.ending(piece)}))
        return result

    def usage_chunk(self, usage: Usage) -> dict[str, Any] | None:
        return _usage_chunk(self.context, "chatcmpl", "chat.completion.chunk", usage)

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        choice = {"logprobs": None, "finish_reason": None} | choice
        return _chunk(self.context, "chatcmpl", "chat.completion.chunk", choice, self._output_tokens)


@dataclass(slots=True)
class _CompletionStream:
    context: ResponseContext
    _offsets: dict[int, TextOffsets] = field(default_factory=dict)
    _output_tokens: int = 0

    def chunks(self, piece: Answer) -> list[dict[str, Any]]:
        check_uncut([piece])
        context = self.context
        text = context.text(piece)
        if not (text or piece.token_ids or piece.finish_reason):
            return []
        self._output_tokens += len(piece.token_ids)
        prompt_ids = {} if self._offsets else context.prompt_ids()
        echoed = "" if piece.index in self._offsets else context.echoed()
        offsets = self._offsets.setdefault(piece.index, context.text_offsets())
        choice = {
            "index": piece.index,
            "text": echoed + text,
            "logprobs": context.completion_logprobs(piece, offsets),
            **context.ending(piece),
            **context.token_ids(piece),
            **prompt_ids,
        }
        return [_chunk(context, "cmpl", "text_completion", choice, self._output_tokens)]

    def usage_chunk(self, usage: Usage) -> dict[str, Any] | None:
        return _usage_chunk(self.context, "cmpl", "text_completion", usage)


def _chunk(
    context: ResponseContext, prefix: str, what: str, choice: dict[str, Any], output_tokens: int
) -> dict[str, Any]:
    # With the usage asked for, OpenAI's chunks have the field from the first one on.
    usage: dict[str, Any] = {"usage": None} if context.request.stream_usage else {}
    if context.request.stream_running_usage:
        usage = {"usage": usage_body(Usage(context.prompt_tokens, output_tokens))}
    return context.head(prefix, what) | {"choices": [choice]} | usage


def _usage_chunk(context: ResponseContext, prefix: str, what: str, usage: Usage) -> dict[str, Any] | None:
    if not context.request.stream_usage:
        return None
    return context.head(prefix, what) | {"choices": [], "usage": usage_body(usage)}
