"""Request bodies of /v1/chat/completions and /v1/completions, with vLLM's usual extensions."""

from __future__ import annotations

from typing import Literal

from common.errors import InvalidRequestError
from common.openai.fields import (
    IGNORED,
    REFUSED_IN_CHAT,
    REFUSED_IN_COMPLETIONS,
    Content,
    Count,
    LogitBias,
    Stop,
    TextOrIds,
    TokenId,
)
from common.openai.validation import StrictModel, clip, validate
from common.request import ChatTurn, GenerationRequest, Prompt
from common.sampling import MAX_LOGPROBS, SamplingParams

DEFAULT_COMPLETION_TOKENS = 16
"""Length of a completion for which none is named, as in OpenAI's API. Chats go on as the context allows."""


class StreamOptions(StrictModel):
    """How to stream. include_obfuscation is about padding that TidePipe never sends."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _CommonBody(StrictModel):
    """What both APIs have in common. null means the default, as if the field were absent."""

    model: str | None = None
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Count | None = None
    stop: Stop | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: LogitBias | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Extensions, named as vLLM names them.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Sampling parameters, checked."""
        params = SamplingParams(
            temperature=_or(self.temperature, 1.0),
            top_k=_top_k(self.top_k),
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            seed=_seed(self.seed),
            logit_bias=self.logit_bias or {},
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            stop=self.stop or (),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            n=1 if self.n is None else self.n,
        )
        try:
            params.check()
        except InvalidRequestError as error:
            raise InvalidRequestError(clip(str(error)), error.param) from None
        return params

    def request(self, request_id: str, prompt: Prompt, sampling: SamplingParams) -> GenerationRequest:
        """The request that this body asks for."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is only allowed with stream: true", "stream_options")
        return GenerationRequest(
            request_id=request_id,
            prompt=prompt,
            sampling=sampling,
            model=self.model or None,
            keep_special_tokens=self.skip_special_tokens is False,
            stream=bool(self.stream),
            stream_usage=self.stream_options is not None and bool(self.stream_options.include_usage),
            return_token_ids=bool(self.return_token_ids),
            include_stop=bool(self.include_stop_str_in_output),
        )


class Message(StrictModel):
    """A turn of a conversation. Fields of answers are allowed empty, so that answers can be sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[object] | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: list[object] | None = None

    def turn(self) -> ChatTurn:
        """The turn as templates know it. `developer` is OpenAI's newer name of `system`."""
        if self.tool_calls:
            raise InvalidRequestError("messages: tools and functions are not supported", "messages")
        return ChatTurn("system" if self.role == "developer" else self.role, self.content, self.name or "")


class ChatBody(_CommonBody):
    """Body of /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None


class CompletionBody(_CommonBody):
    """Body of /v1/completions."""

    prompt: TextOrIds
    logprobs: Count | None = None


def parse_chat(body: object, request_id: str) -> GenerationRequest:
    """Request from the decoded JSON of a chat body. Raises InvalidRequestError."""
    chat = validate(ChatBody, body, REFUSED_IN_CHAT, IGNORED)
    if not chat.messages:
        raise InvalidRequestError("messages must not be empty", "messages")
    limits = {limit for limit in (chat.max_tokens, chat.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        raise InvalidRequestError(
            f"max_tokens ({chat.max_tokens}) and max_completion_tokens ({chat.max_completion_tokens}) "
            "contradict each other; send one of them",
            "max_completion_tokens",
        )
    if chat.top_logprobs and not chat.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true", "top_logprobs")
    if chat.top_logprobs is not None and chat.top_logprobs > MAX_LOGPROBS:
        raise InvalidRequestError(
            f"top_logprobs must be at most {MAX_LOGPROBS}, got {chat.top_logprobs}", "top_logprobs"
        )
    logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
    prompt = tuple(message.turn() for message in chat.messages)
    return chat.request(request_id, prompt, chat.sampling(next(iter(limits), None), logprobs))


def parse_completion(body: object, request_id: str) -> GenerationRequest:
    """Request from the decoded JSON of a completion body. Raises InvalidRequestError."""
    completion = validate(CompletionBody, body, REFUSED_IN_COMPLETIONS, IGNORED)
    max_tokens = DEFAULT_COMPLETION_TOKENS if completion.max_tokens is None else completion.max_tokens
    sampling = completion.sampling(max_tokens, completion.logprobs)
    return completion.request(request_id, completion.prompt, sampling)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _top_k(value: int | None) -> int:
    # -1 is vLLM's word for no limit; a limit beyond any vocabulary is none either.
    if value is None or value == -1:
        return 0
    return min(value, 2**31 - 1)


def _seed(value: int | None) -> int | None:
    # OpenAI's seeds are signed 64-bit integers.
    return value + 2**64 if value is not None and -(2**63) <= value < 0 else value
