"""Response bodies of both APIs, whole or as chunks of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from tidepipe_common.dialects import Dialect, Reading, Spoken, read_whole
from tidepipe_common.dialects.reader import PausingReader
from tidepipe_common.dialects.tools import Tools
from tidepipe_common.errors import TidePipeError, UnavailableError
from tidepipe_common.openai.answers import (
    AnswerBody,
    AnswerChunk,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    CompletionAnswer,
    CompletionChoice,
    CompletionChunk,
    CompletionDelta,
    CompletionLogprobs,
    Delta,
    Error,
    PromptLogprobsBody,
    WholeReason,
)
from tidepipe_common.openai.answers import Usage as UsageBody
from tidepipe_common.openai.logprobs import (
    TextOffsets,
    TokenBytes,
    chat_logprobs,
    completion_logprobs,
    echoed_logprobs,
    joined,
    prompt_logprobs_body,
)
from tidepipe_common.openai.spoken import CallId, SpokenStream, ThoughtTokens, chat_reason, message_of
from tidepipe_common.types.prompt_reading import PromptLog, PromptLogprobs
from tidepipe_common.types.request import Answer, GenerationRequest, Usage
from tidepipe_common.types.sampling import FinishReason

DONE = b"data: [DONE]\n\n"
"""Ends a stream of server-sent events."""
_TOKEN_BYTES, _LOGPROB_BYTES = 12, 90
_WHOLE: dict[FinishReason | None, WholeReason] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


def _unheard(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ResponseContext:
    """What a body says besides the answer.

    created: Unix time, seconds.
    token_bytes: needed for log-probabilities.
    prompt_token_ids: needed if the request wants token ids; None: not known here, and left out.
    prompt_tokens: needed if it wants the usage so far. prompt_text: needed if it wants the prompt back.
    prompt: its tokens, needed if it wants that with log-probabilities.
    hidden: tells tokens that are not in the text, such as special ones.
    reading: how answers are read; None: they are words. spells: token_bytes are those of the text.
    notice: told of answers in which something looked like a call and was none.
    others: of the request's further prompts.
    """

    request: GenerationRequest
    model: str
    created: int
    token_bytes: TokenBytes | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_tokens: int = 0
    prompt_text: str = ""
    hidden: Callable[[int], bool] | None = None
    others: tuple[ResponseContext, ...] = ()
    prompt: Sequence[int] = ()
    reading: Reading | None = None
    spells: bool = True
    notice: Callable[[str], None] = _unheard
    tools: Tools = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", Tools(self.request.tools if self.request.callable else ()))

    def reader(self) -> PausingReader | None:
        """A reader of one answer; None: answers are words and nothing else."""
        return None if self.reading is None else self.reading.reader(self.tools)

    @property
    def shows_reasoning(self) -> bool:
        """True if bodies have fields for thoughts: the model has some, and the request wants them."""
        return self._thinks and self.request.include_reasoning

    def call_id(self, index: int) -> CallId:
        """Ids of the calls in one of the answers; the same whenever it is told again."""
        reading, request = self.reading or Reading(Dialect("none")), self.request
        return lambda name, call: reading.call_id(f"{request.request_id}/{index}/{call}", name, call)

    def thought_tokens(self) -> ThoughtTokens | None:
        """Counts an answer's tokens that are thought; None if there are none, or it cannot be known here."""
        if not self._thinks or self.token_bytes is None or not self.spells:
            return None
        return ThoughtTokens(self._text_bytes)

    def of(self, index: int) -> ResponseContext:
        """That of the prompt to which this answer belongs."""
        number = self.number(index)
        return self.others[number - 1] if number else self

    def number(self, index: int) -> int:
        """Which prompt that is."""
        return index // self.request.sampling.n if self.others else 0

    def text(self, answer: Answer) -> str:
        """Text of an answer, with its stop string if the request wants to see that."""
        ended_by = answer.stopped_by if self.request.include_stop else None
        return answer.text + (ended_by if isinstance(ended_by, str) else "")

    def echoed(self) -> str:
        """The prompt, if the request wants it back."""
        return self.prompt_text if self.request.echo else ""

    def prompt_ids(self) -> list[int] | None:
        """Token ids of the prompt, if the request wants them and they are known."""
        if self.prompt_token_ids is None or not self.request.return_token_ids:
            return None
        return list(self.prompt_token_ids)

    def usage_so_far(self, output_tokens: int) -> UsageBody | None:
        """The `usage` of a chunk, if the request wants it in each of them."""
        if not self.request.stream_running_usage:
            return None
        prompt_tokens = self.prompt_tokens + sum(other.prompt_tokens for other in self.others)
        return _token_counts(Usage(prompt_tokens, output_tokens))

    def chat_logprobs(self, answer: Answer) -> ChatLogprobs | None:
        """Log-probabilities of a chat answer, if the request wants them and there are tokens."""
        if not self._logprobs_wanted(answer) or self.token_bytes is None:
            return None
        return chat_logprobs(answer.logprobs, self.token_bytes)

    def completion_logprobs(self, answer: Answer, offsets: TextOffsets) -> CompletionLogprobs | None:
        """Log-probabilities of a completion, if the request wants them and there are tokens."""
        if not self._logprobs_wanted(answer) or self.token_bytes is None:
            return None
        return completion_logprobs(answer.logprobs, self.token_bytes, offsets)

    @property
    def echoes_logprobs(self) -> bool:
        """True if the prompt's log-probabilities stand before the answer's."""
        return self.request.echo and self.request.sampling.logprobs is not None

    def echoed_logprobs(self, read: PromptLogprobs | None) -> CompletionLogprobs | None:
        """Those of the prompt, if they stand before the answer's."""
        top = self.request.sampling.logprobs
        if not self.echoes_logprobs or top is None or self.token_bytes is None:
            return None
        special = self.hidden or (lambda token_id: False)
        return echoed_logprobs(self.prompt, self.prompt_text, read, top, self.token_bytes, special)

    def shown_prompt_logprobs(self, read: PromptLogprobs | None) -> PromptLogprobsBody | None:
        """Those of the prompt as vLLM shows them, if asked for."""
        top = self.request.prompt_logprobs
        if top is None or self.token_bytes is None:
            return None
        return prompt_logprobs_body(read, top, self.token_bytes)

    def completion_delta(
        self, answer: Answer, text: str, offsets: TextOffsets, *, with_prompt_ids: bool
    ) -> CompletionDelta:
        """The next piece of an answer, or all of it. offsets: have taken the answer's tokens so far."""
        choice: CompletionDelta = {
            "index": answer.index,
            "text": text,
            "logprobs": self.completion_logprobs(answer, offsets),
            "finish_reason": _WHOLE.get(answer.finish_reason),
            "stop_reason": self.stop_reason(answer),
        }
        if self.request.return_token_ids:
            choice["token_ids"] = list(answer.token_ids)
        if with_prompt_ids and (ids := self.prompt_ids()) is not None:
            choice["prompt_token_ids"] = ids
        return choice

    def text_offsets(self) -> TextOffsets:
        """Where the tokens of one answer stand in its text; follows the answer from its beginning."""
        return TextOffsets(self._text_bytes, len(self.echoed()) if self.echoes_logprobs else 0)

    def stop_reason(self, answer: Answer) -> int | str | None:
        """The token or text that ended it; an ordinary end of text is none, unless asked for."""
        by = answer.stopped_by
        return None if isinstance(by, int) and by not in self.request.sampling.stop_token_ids else by

    @property
    def _thinks(self) -> bool:
        return self.reading is not None and self.reading.dialect.thinks

    def _text_bytes(self, token_id: int) -> bytes:
        if self.token_bytes is None or (self.hidden is not None and self.hidden(token_id)):
            return b""
        return self.token_bytes(token_id)

    def _logprobs_wanted(self, answer: Answer) -> bool:
        return self.request.sampling.logprobs is not None and bool(answer.logprobs)


def usage_body(usage: Usage, reasoning_tokens: int | None = None) -> UsageBody:
    """The `usage` object. reasoning_tokens: None if they are not counted."""
    body = _token_counts(usage)
    body["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if reasoning_tokens is not None:
        body["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return body


def _token_counts(usage: Usage) -> UsageBody:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


def chat_completion_body(context: ResponseContext, answers: Sequence[Answer], usage: Usage) -> ChatAnswer:
    """Body of a finished chat."""
    choices: list[ChatChoice] = []
    reasoning: list[int] = []
    for answer in answers:
        reader = context.reader()
        text = context.text(answer)
        spoken = Spoken("", text) if reader is None else read_whole(reader, text)
        choice: ChatChoice = {
            "index": answer.index,
            "message": message_of(spoken, context.call_id(answer.index), reasoning=context.shows_reasoning),
            "logprobs": context.chat_logprobs(answer),
            "finish_reason": chat_reason(answer.finish_reason, called=bool(spoken.calls)),
            "stop_reason": context.stop_reason(answer),
        }
        if context.request.return_token_ids:
            choice["token_ids"] = list(answer.token_ids)
        if spoken.warning:
            choice["warning"] = spoken.warning
            context.notice(spoken.warning)
        choices.append(choice)
        if reader is not None and (tokens := context.thought_tokens()) is not None:
            tokens.take(answer.token_ids)
            reasoning.append(tokens.count(reader.thoughts))
    body: ChatAnswer = {
        "id": f"chatcmpl-{context.request.request_id}",
        "object": "chat.completion",
        "created": context.created,
        "model": context.model,
        "choices": choices,
        "usage": usage_body(usage, sum(reasoning) if reasoning else None),
    }
    if (ids := context.prompt_ids()) is not None:
        body["prompt_token_ids"] = ids
    if (shown := context.shown_prompt_logprobs(answers[0].prompt_logprobs)) is not None:
        body["prompt_logprobs"] = shown
    return body


def completion_body(context: ResponseContext, answers: Sequence[Answer], usage: Usage) -> CompletionAnswer:
    """Body of a finished completion."""
    choices = []
    for answer in answers:
        own = context.of(answer.index)
        text, offsets = own.echoed() + own.text(answer), own.text_offsets()
        delta = own.completion_delta(answer, text, offsets, with_prompt_ids=True)
        choice = cast(CompletionChoice, delta)  # it has ended
        # Of the answers to a prompt the first one has what was read off it.
        read = answers[answer.index - answer.index % context.request.sampling.n].prompt_logprobs
        if (echoed := own.echoed_logprobs(read)) is not None:
            choice["logprobs"] = joined(echoed, choice["logprobs"])
        if (shown := own.shown_prompt_logprobs(read)) is not None:
            choice["prompt_logprobs"] = shown
        choices.append(choice)
    return {
        "id": f"cmpl-{context.request.request_id}",
        "object": "text_completion",
        "created": context.created,
        "model": context.model,
        "choices": choices,
        "usage": usage_body(usage),
    }


def response_body(context: ResponseContext, answers: Sequence[Answer], usage: Usage) -> AnswerBody:
    """Body of a finished request of either API. Raises as `check_uncut`."""
    check_uncut(answers, context)
    if context.request.is_chat:
        return chat_completion_body(context, answers, usage)
    return completion_body(context, answers, usage)


def answer_bytes(request: GenerationRequest, tokens: int, prompt_tokens: int = 0) -> int:
    """About how large a body will be."""
    logprobs, of_prompt = request.sampling.logprobs, request.sampling.prompt_logprobs
    more = 0 if of_prompt is None else prompt_tokens * _LOGPROB_BYTES * (of_prompt + 1)
    return more + tokens * (_TOKEN_BYTES + (0 if logprobs is None else _LOGPROB_BYTES * (logprobs + 1)))


def check_uncut(pieces: Sequence[Answer], context: ResponseContext | None = None) -> None:
    """Raise what happened if one of these answers, or last pieces of answers, was cut.

    context: to say which of several prompts it was. OpenAI's clients take every answer for a whole one: what
    was cut is an error there, or an error event.
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
                where = ""
                if context is not None and context.others:
                    where = f"prompt {context.number(piece.index)}: "
                raise TidePipeError(where + (piece.error or "the answer could not be finished"))


class ResponseStream(Protocol):
    """Makes the chunks of one request's stream."""

    def chunks(self, piece: Answer) -> Sequence[AnswerChunk]:
        """Chunks for the next piece of one of the answers: its new tokens and text.

        Raises as `check_uncut`, before anything says that the answer has ended.
        """
        ...

    def usage_chunk(self, usage: Usage) -> AnswerChunk | None:
        """The last chunk, if the request wants to see the usage."""
        ...


def response_stream(context: ResponseContext) -> ResponseStream:
    """Stream of either API."""
    return _ChatStream(context) if context.request.is_chat else _CompletionStream(context)


def sse(chunk: AnswerChunk | Error) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(chunk, allow_nan=False, separators=(',', ':'))}\n\n".encode()


@dataclass(slots=True)
class _ChatStream:
    context: ResponseContext
    _answers: dict[int, SpokenStream | None] = field(default_factory=dict)
    _output_tokens: int = 0

    def chunks(self, piece: Answer) -> list[ChatChunk]:
        check_uncut([piece])
        context, index = self.context, piece.index
        self._output_tokens += len(piece.token_ids)
        result: list[ChatChunk] = []
        if index not in self._answers:
            opening = self._chunk(index, {"role": "assistant", "content": ""})
            if not self._answers and (ids := context.prompt_ids()) is not None:
                opening["prompt_token_ids"] = ids
            self._answers[index] = self._spoken(index)
            result.append(opening)
        spoken = self._answers[index]
        logprobs, token_ids = context.chat_logprobs(piece), context.request.return_token_ids
        for delta in self._deltas(piece, spoken):
            # What belongs to the tokens comes with the first news that they bring.
            news, logprobs = self._chunk(index, delta, logprobs), None
            if token_ids:
                news["choices"][0]["token_ids"] = list(piece.token_ids)
                token_ids = False
            result.append(news)
        if piece.finish_reason is not None:
            last = self._chunk(index, {})
            (choice,) = last["choices"]
            choice["finish_reason"] = chat_reason(piece.finish_reason, called=bool(spoken and spoken.called))
            choice["stop_reason"] = context.stop_reason(piece)
            if spoken is not None and (warning := spoken.reader.warning):
                choice["warning"] = warning
                context.notice(warning)
            result.append(last)
        return result

    def _spoken(self, index: int) -> SpokenStream | None:
        context = self.context
        if (reader := context.reader()) is None:
            return None
        return SpokenStream(
            reader,
            context.call_id(index),
            context.shows_reasoning,
            thinking=context.thought_tokens() if context.request.stream_usage else None,
        )

    def _deltas(self, piece: Answer, spoken: SpokenStream | None) -> list[Delta]:
        """What is new of an answer, in as many deltas as it takes; an empty one if only tokens are shown."""
        context = self.context
        text, ended = context.text(piece), piece.finish_reason is not None
        if spoken is None:
            return [{"content": text}] if text or piece.token_ids else []
        if spoken.thinking is not None:
            spoken.thinking.take(piece.token_ids)
        request = context.request
        shown = request.sampling.logprobs is not None or request.return_token_ids
        return spoken.feed(text, ended=ended) or ([{}] if shown and piece.token_ids else [])

    def usage_chunk(self, usage: Usage) -> ChatChunk | None:
        if not self.context.request.stream_usage:
            return None
        chunk = self._chunk(0, {})
        counts = [
            spoken.thinking.count(spoken.reader.thoughts)
            for spoken in self._answers.values()
            if spoken is not None and spoken.thinking is not None
        ]
        chunk["choices"], chunk["usage"] = [], usage_body(usage, sum(counts) if counts else None)
        return chunk

    def _chunk(self, index: int, delta: Delta, logprobs: ChatLogprobs | None = None) -> ChatChunk:
        context = self.context
        chunk: ChatChunk = {
            "id": f"chatcmpl-{context.request.request_id}",
            "object": "chat.completion.chunk",
            "created": context.created,
            "model": context.model,
            "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}],
        }
        # With the usage asked for, OpenAI's chunks have the field from the first one on.
        if context.request.stream_usage:
            chunk["usage"] = context.usage_so_far(self._output_tokens)
        return chunk


@dataclass(slots=True)
class _CompletionStream:
    context: ResponseContext
    _offsets: dict[int, TextOffsets] = field(default_factory=dict)
    _told: set[int] = field(default_factory=set)
    _output_tokens: int = 0
    _read: dict[int, PromptLog] = field(default_factory=dict)
    _held: dict[int, list[Answer]] = field(default_factory=dict)

    def chunks(self, piece: Answer) -> list[CompletionChunk]:
        check_uncut([piece], self.context)
        if not self.context.echoes_logprobs:
            return self._chunks(piece)
        number, first = self.context.number(piece.index), piece.index % self.context.request.sampling.n == 0
        log = self._read.setdefault(number, PromptLog())
        if first and piece.prompt_logprobs is not None:
            log.merge(piece.prompt_logprobs)
        held = self._held.setdefault(number, [])
        held.append(piece)
        # What follows the prompt waits for all of it, also other answers to it.
        if len(log) < len(self.context.of(piece.index).prompt) - 1:
            return []
        self._held[number] = []
        return [chunk for one in held for chunk in self._chunks(one)]

    def _chunks(self, piece: Answer) -> list[CompletionChunk]:
        context = self.context.of(piece.index)
        text = context.text(piece)
        if not (text or piece.token_ids or piece.finish_reason):
            return []
        self._output_tokens += len(piece.token_ids)
        number = self.context.number(piece.index)
        first = number not in self._told
        self._told.add(number)
        begins = piece.index not in self._offsets
        echoed = context.echoed() if begins else ""
        offsets = self._offsets.setdefault(piece.index, context.text_offsets())
        choice = context.completion_delta(piece, echoed + text, offsets, with_prompt_ids=first)
        if begins and context.echoes_logprobs:
            log = self._read[number]
            if (before := context.echoed_logprobs(log.read(0, len(log)))) is not None:
                choice["logprobs"] = joined(before, choice["logprobs"])
        return [self._chunk([choice])]

    def usage_chunk(self, usage: Usage) -> CompletionChunk | None:
        if not self.context.request.stream_usage:
            return None
        chunk = self._chunk([])
        chunk["usage"] = usage_body(usage)
        return chunk

    def _chunk(self, choices: list[CompletionDelta]) -> CompletionChunk:
        context = self.context
        chunk: CompletionChunk = {
            "id": f"cmpl-{context.request.request_id}",
            "object": "text_completion",
            "created": context.created,
            "model": context.model,
            "choices": choices,
        }
        if context.request.stream_usage:
            chunk["usage"] = context.usage_so_far(self._output_tokens)
        return chunk
