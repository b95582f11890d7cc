"""Request bodies of /v1/chat/completions and /v1/completions, with vLLM's usual extensions."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import (
    MAX_CACHE_SALT_BYTES,
    MAX_LOGPROBS,
    MAX_NAME_CHARACTERS,
    MAX_PROMPTS,
    MAX_SPEAKER_CHARACTERS,
    MAX_TURNS,
    check_count,
)
from tidepipe_common.openai.fields import (
    IGNORED,
    IGNORED_IN_COMPLETIONS,
    REFUSED_IN_CHAT,
    REFUSED_IN_COMPLETIONS,
    Content,
    LogitBias,
    Prompts,
    Stop,
    StopTokenIds,
    UserName,
)
from tidepipe_common.openai.numbers import (
    Answers,
    Count,
    FewestTokens,
    MinP,
    OutputTokens,
    Penalty,
    Priority,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopLogprobs,
    TopP,
)
from tidepipe_common.openai.reasoning import ReasoningFields
from tidepipe_common.openai.structures import (
    GuidedChoice,
    GuidedJson,
    GuidedRegex,
    ResponseFormat,
    StructuredOutputs,
)
from tidepipe_common.openai.tools import ToolCalls, ToolChoiceField, Tools
from tidepipe_common.openai.validation import StrictModel, clip, validate
from tidepipe_common.types.request import ChatTurn, GenerationRequest, Prompt
from tidepipe_common.types.sampling import SamplingParams, unsigned_seed
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.thought import TemplateOptions
from tidepipe_common.types.tool_choice import ToolChoice

DEFAULT_COMPLETION_TOKENS = 16
"""Length of a completion for which none is named, as in OpenAI's API. Chats go on as the context allows."""

WHOLE_ANSWER_GAP_S = 1.0
"""How often an answer that is not streamed is looked at before it ends."""

ModelName = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
CacheSalt = Annotated[str, Field(min_length=1, max_length=MAX_CACHE_SALT_BYTES)]
Speaker = Annotated[str, Field(max_length=MAX_SPEAKER_CHARACTERS)]

ServiceTier = Literal["auto", "default", "standard", "standard_only", "scale", "flex", "priority"]
TIERS = {"flex": 30, "priority": -30}
"""What a tier means as a priority; the others mean none."""

_STRUCTURE_FIELDS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice")


class StreamOptions(StrictModel):
    """How to stream. include_obfuscation is about padding that TidePipe never sends.

    continuous_usage_stats: vLLM's, the usage so far in every chunk.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class _CommonBody(StrictModel):
    """What both APIs have in common. null means the default, as if the field were absent."""

    model: ModelName | None = None
    max_tokens: OutputTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Answers | None = None
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # Extensions, named as vLLM names them.
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    user: UserName | None = None
    cache_salt: CacheSalt | None = None
    priority: Priority | None = None
    service_tier: ServiceTier | None = None
    safety_identifier: UserName | None = None
    stop_token_ids: StopTokenIds | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: TopLogprobs | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: GuidedJson | None = None
    guided_regex: GuidedRegex | None = None
    guided_choice: GuidedChoice | None = None

    def structure(self) -> Structure | None:
        """The form that the output is held to; InvalidRequestError if there are two."""
        wishes = {
            name: wish for name in _STRUCTURE_FIELDS if isinstance(wish := getattr(self, name), Structure)
        }
        if len(wishes) > 1:
            first, second, *_ = wishes
            raise InvalidRequestError(f"{first} and {second} contradict each other; send one of them", second)
        return next(iter(wishes.values()), None)

    def sampling(
        self, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
    ) -> SamplingParams:
        """Sampling parameters, checked."""
        params = SamplingParams(
            temperature=_or(self.temperature, 1.0),
            top_k=_top_k(self.top_k),
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            seed=unsigned_seed(self.seed),
            logit_bias=self.logit_bias or {},
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            stop=self.stop or (),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            n=1 if self.n is None else self.n,
            structure=self.structure(),
            prompt_logprobs=prompt_logprobs,
        )
        try:
            params.check()
        except InvalidRequestError as error:
            raise InvalidRequestError(clip(str(error)), error.param) from None
        return params

    def turn_priority(self) -> int:
        """As `priority` says, or the tier."""
        return TIERS.get(self.service_tier or "", 0) if self.priority is None else self.priority

    def request(self, request_id: str, prompt: Prompt, sampling: SamplingParams) -> GenerationRequest:
        """The request that this body asks for."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is only allowed with stream: true", "stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError(
                "prompt_logprobs and stream contradict each other: ask for a whole answer", "prompt_logprobs"
            )
        options = self.stream_options or StreamOptions()
        return GenerationRequest(
            request_id=request_id,
            prompt=prompt,
            sampling=sampling,
            model=self.model or None,
            keep_special_tokens=self.skip_special_tokens is False,
            stream=bool(self.stream),
            stream_usage=bool(options.include_usage),
            stream_running_usage=bool(options.include_usage and options.continuous_usage_stats),
            return_token_ids=bool(self.return_token_ids),
            prompt_logprobs=self.prompt_logprobs,
            include_stop=bool(self.include_stop_str_in_output),
            piece_gap_s=0.0 if self.stream else WHOLE_ANSWER_GAP_S,
            client=self.safety_identifier or self.user or "",
            cache_salt=self.cache_salt or "",
            priority=self.turn_priority(),
        )


class Message(StrictModel):
    """A turn of a conversation. Fields of answers are allowed empty, so that answers can be sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Speaker | None = None
    tool_call_id: Speaker | None = None
    tool_calls: ToolCalls | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: list[object] | None = None
    parsed: object = None
    reasoning_content: Content | None = None
    reasoning: Content | None = None

    def turn(self, number: int) -> ChatTurn:
        """The turn as templates know it. `developer` is OpenAI's newer name of `system`."""
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequestError(f"messages.{number}: only an assistant has tool_calls", "messages")
        reasoning = self.reasoning_content or self.reasoning or ""
        if reasoning and self.role != "assistant":
            raise InvalidRequestError(f"messages.{number}: only an assistant has reasoning", "messages")
        # An assistant may have said nothing: clients send such answers back without the thoughts they had.
        if self.content is None and self.role != "assistant":
            raise InvalidRequestError(f"messages.{number}.content is required", "messages")
        return ChatTurn(
            role="system" if self.role == "developer" else self.role,
            content=self.content or "",
            name=self.name or "",
            tool_calls=self.tool_calls or "",
            tool_call_id=self.tool_call_id or "",
            reasoning=reasoning,
        )


class ChatBody(_CommonBody, ReasoningFields):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(max_length=MAX_TURNS, json_schema_extra={"minItems": 1})]
    max_completion_tokens: OutputTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None

    def template(self) -> TemplateOptions:
        """What the chat template gets besides messages and tools."""
        continued = bool(self.continue_final_message)
        if continued and self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt contradict each other; send one of them",
                "continue_final_message",
            )
        opened = not continued and self.add_generation_prompt is not False
        return TemplateOptions(
            self.effort(), self.chat_template_kwargs or "", continued=continued, opened=opened
        )

    def choice(self) -> ToolChoice:
        """Which tools may or must be called; InvalidRequestError if there are none to choose from."""
        choice = self.tool_choice or ToolChoice()
        if self.tool_choice is not None and choice.mode != "none" and not self.tools:
            raise InvalidRequestError("tool_choice is only allowed with tools", "tool_choice")
        return choice if self.parallel_tool_calls is not False else replace(choice, parallel=False)


class CompletionBody(_CommonBody):
    """Body of /v1/completions."""

    prompt: Prompts
    max_tokens: FewestTokens | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None

    def of_prompt(self) -> int | None:
        """How many log-probabilities of each position of the prompt it takes to answer this."""
        if not self.echo:
            return self.prompt_logprobs
        # The prompt alone: it is looked at all the same, as there is no other way to answer nothing.
        shown = 0 if self.max_tokens == 0 and self.logprobs is None else self.logprobs
        return max((one for one in (shown, self.prompt_logprobs) if one is not None), default=None)


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
    prompt = tuple(message.turn(number) for number, message in enumerate(chat.messages))
    sampling = chat.sampling(next(iter(limits), None), logprobs, chat.prompt_logprobs)
    sampling = replace(sampling, max_reasoning_tokens=chat.thought_tokens())
    request = replace(
        chat.request(request_id, prompt, sampling),
        template=chat.template(),
        marks=True,
        include_reasoning=chat.include_reasoning is not False,
    )
    choice = chat.choice()
    if choice.mode == "none":  # the model is not even told of them
        return request
    return replace(request, tools=chat.tools or (), tool_choice=choice)


def parse_completion(body: object, request_id: str) -> GenerationRequest:
    """Request from the decoded JSON of a completion body. Raises InvalidRequestError."""
    completion = validate(CompletionBody, body, REFUSED_IN_COMPLETIONS, IGNORED_IN_COMPLETIONS)
    max_tokens = DEFAULT_COMPLETION_TOKENS if completion.max_tokens is None else completion.max_tokens
    sampling = completion.sampling(max_tokens, completion.logprobs, completion.of_prompt())
    if max_tokens == 1 and completion.echo and completion.logprobs is not None:
        # Whoever asks so counts on one token behind the prompt, also where the model would end there.
        sampling = sampling if sampling.structure else replace(sampling, ignore_eos=True)
    first, *more = completion.prompt
    request = replace(
        completion.request(request_id, first, sampling),
        more_prompts=tuple(more),
        echo=bool(completion.echo),
        clamp_max_tokens=completion.max_tokens is None,
    )
    # How many answers that makes depends on both, and so has no place in a schema.
    check_count("prompt", len(completion.prompt) * sampling.n, MAX_PROMPTS, "answers to all prompts together")
    return request


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _top_k(value: int | None) -> int:
    # -1 is vLLM's word for no limit; a limit beyond any vocabulary is none either.
    if value is None or value == -1:
        return 0
    return min(value, 2**31 - 1)
