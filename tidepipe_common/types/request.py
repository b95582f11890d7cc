"""A request as clients mean it, and the answer as they get it (domain types, no protobuf, no HTTP)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TypeAlias

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import (
    MAX_CACHE_SALT_BYTES,
    MAX_INPUTS,
    MAX_NAME_CHARACTERS,
    MAX_PRIORITY,
    MAX_PROMPT_BYTES,
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    MAX_ROLE_CHARACTERS,
    MAX_SPEAKER_CHARACTERS,
    MAX_TOOLS,
    MAX_TOOLS_BYTES,
    MAX_TURNS,
    TURN_CHARACTERS,
    check_bytes,
    check_characters,
    check_count,
    text_bytes,
)
from tidepipe_common.types.prompt_reading import PromptLogprobs
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams
from tidepipe_common.types.thought import TemplateOptions
from tidepipe_common.types.tool_choice import ToolChoice

TOKEN_BYTES = 44
"""Of a token id among Python's objects, and in the message that brought it."""
ANY_TOOL = ToolChoice()
PLAIN_TEMPLATE = TemplateOptions()
MIN_LATENCY_TARGET_MS = 0.001
MAX_LATENCY_TARGET_MS = 86_400_000.0


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One turn of a conversation; what the client did not give is empty.

    name: of the speaker. tool_calls: JSON list, made by an assistant. tool_call_id: answered by a tool.
    reasoning: an assistant's thought before it.
    """

    role: str
    content: str
    name: str = ""
    tool_calls: str = ""
    tool_call_id: str = ""
    reasoning: str = ""


Prompt: TypeAlias = str | tuple[int, ...] | tuple[ChatTurn, ...]
"""Plain text, token ids, or a conversation. Never empty tuples: those could be either."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to answer, how, and what the client wants to see of it.

    model: None for the only one served.
    more_prompts: texts and token ids that are answered as well, each n times; answers are numbered prompt by
        prompt, and all fail if one does.
    skip_text: return token ids only.
    keep_special_tokens: special tokens stay in the text.
    marks: of special tokens, those stay in the text by which thoughts and calls of tools are told from words.
    include_reasoning: the body shows the thoughts.
    tools: functions that a chat may call, each a JSON object; the chat template shows them to the model.
    tool_choice: which of them it may call, and whether it must.
    template: what the chat template gets besides.
    stream, stream_usage: server-sent events, and a last one with the usage.
    stream_running_usage: the usage so far in every event.
    echo: the prompt stays in front of the text.
    prompt_logprobs: how many most likely tokens are shown of each position of the prompt, as vLLM shows them.
    return_token_ids: put prompt and output token ids into the body.
    include_stop: the stop string that ended an answer stays at the end of its text.
    ttft_ms, tpot_ms: latency wanted until the first token and per token after it; None: the service's own.
    clamp_max_tokens: max_tokens is a default that the client did not send; less room for it is no error.
    piece_gap_s: what is new may be sent this seldom; the end is told at once.
    client: who asks, as far as is known; a hash of it goes to the predictor, the name itself nowhere.
    cache_salt: shares computed beginnings only with requests of its owner that have the same one.
    trace_id: what the caller's proxies and logs call it; names nothing here.
    trace_context: the span that its caller asks within, see telemetry/traces.py.
    owner: whose request it is, see security.caller: the same request_id of two owners is two requests.
    priority: lower goes sooner, among its owner's requests; beside others' nothing is more urgent than 0.
    unlearned: nothing is to be learned from how long its answers are.
    background: nobody waits for it (a line of a batch): it runs in what other requests leave.
    """

    request_id: str
    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    model: str | None = None
    skip_text: bool = False
    keep_special_tokens: bool = False
    marks: bool = False
    include_reasoning: bool = True
    tools: tuple[str, ...] = ()
    tool_choice: ToolChoice = ANY_TOOL
    template: TemplateOptions = PLAIN_TEMPLATE
    stream: bool = False
    stream_usage: bool = False
    stream_running_usage: bool = False
    echo: bool = False
    return_token_ids: bool = False
    include_stop: bool = False
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    piece_gap_s: float = 0.0
    client: str = ""
    cache_salt: str = ""
    trace_id: str = ""
    trace_context: str = ""
    owner: str = ""
    priority: int = 0
    background: bool = False
    unlearned: bool = False
    clamp_max_tokens: bool = False
    more_prompts: tuple[str | tuple[int, ...], ...] = ()
    prompt_logprobs: int | None = None

    def check(self) -> None:
        """Raise InvalidRequestError for what makes no sense for any model."""
        self.sampling.check()
        for number, prompt in enumerate(self.prompts):
            if not prompt:
                empty = InvalidRequestError("the prompt is empty", "prompt")
                raise about_prompt(number, empty) if self.more_prompts else empty
        self._check_prompts()
        self._check_tools()
        self._check_template()
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidRequestError(
                f"priority must be in [-{MAX_PRIORITY}, {MAX_PRIORITY}], got {self.priority}", "priority"
            )
        check_characters("model", self.model or "", MAX_NAME_CHARACTERS)
        check_bytes("cache_salt", text_bytes(self.cache_salt), MAX_CACHE_SALT_BYTES)
        for name, target in (("ttft_ms", self.ttft_ms), ("tpot_ms", self.tpot_ms)):
            if target is not None and not MIN_LATENCY_TARGET_MS <= target <= MAX_LATENCY_TARGET_MS:
                raise InvalidRequestError(
                    f"{name} must be in [{MIN_LATENCY_TARGET_MS:g}, {MAX_LATENCY_TARGET_MS:.0f}] "
                    f"milliseconds, got {target:g}",
                    name,
                )

    def _check_tools(self) -> None:
        self.tool_choice.check(len(self.tools))
        if not self.callable:
            return
        forced = self.tool_choice.mode == "required"
        if forced and self.sampling.structure is not None:
            raise InvalidRequestError(
                "response_format and a tool_choice that asks for a call contradict each other; "
                "send one of them",
                "tool_choice",
            )

    def _check_template(self) -> None:
        self.template.check()
        if not self.template.continued:
            return
        if not self.is_chat or self.turns[-1].role != "assistant" or not self.turns[-1].content:
            raise InvalidRequestError(
                "continue_final_message needs an assistant's message with content as the last one",
                "continue_final_message",
            )

    @property
    def manner(self) -> str:
        """What says how long an answer of this kind is besides its prompt: thinking, tools, a call that is
        asked for. Empty for an ordinary answer."""
        template, choice = self.template, self.tool_choice
        how = [template.effort, template.arguments, choice.mode if self.callable else ""]
        if self.sampling.max_reasoning_tokens is not None:
            how.append(str(self.sampling.max_reasoning_tokens))
        return " ".join(how) if any(how) else ""

    @property
    def callable(self) -> bool:
        """True if the answer may call a tool."""
        return bool(self.tools) and self.tool_choice.mode != "none"

    def _check_prompts(self) -> None:
        if self.is_chat:
            check_count("messages", len(self.prompt), MAX_TURNS)
            check_count("tools", len(self.tools), MAX_TOOLS)
            for turn in self.turns:
                check_characters("a role", turn.role, MAX_ROLE_CHARACTERS, "messages")
                check_characters("a name", turn.name, MAX_SPEAKER_CHARACTERS, "messages")
                check_characters("tool_call_id", turn.tool_call_id, MAX_SPEAKER_CHARACTERS, "messages")
            calls = sum(text_bytes(turn.tool_calls) for turn in self.turns)
            check_bytes("tool_calls", calls, MAX_TOOLS_BYTES, "messages")
            tools = sum(map(text_bytes, self.tools))
            check_bytes("tools", tools, MAX_TOOLS_BYTES)
            said = sum(text_bytes(turn.content) + text_bytes(turn.reasoning) for turn in self.turns)
            size = calls + tools + said
            check_bytes("the chat and its tools", size, MAX_PROMPT_BYTES, "messages")
            return
        prompts = self.prompts
        most = MAX_PROMPTS if self.sampling.pooling is None else MAX_INPUTS
        check_count("prompt", len(prompts), most, "prompts")
        answers = len(prompts) * self.sampling.n
        check_count("prompt", answers, most, "answers to all prompts together")
        size = sum(text_bytes(prompt) for prompt in prompts if isinstance(prompt, str))
        check_bytes("the prompt", size, MAX_PROMPT_BYTES, "prompt")
        tokens = sum(len(prompt) for prompt in prompts if not isinstance(prompt, str))
        check_count("the prompt", tokens, MAX_PROMPT_TOKENS, "tokens", param="prompt")

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All of them."""
        return (self.prompt, *self.more_prompts)

    @property
    def turns(self) -> list[ChatTurn]:
        """Of a chat; else none."""
        return [turn for turn in self.prompt if isinstance(turn, ChatTurn)] if self.is_chat else []

    @property
    def calls_before(self) -> int:
        """Calls of tools in the conversation so far."""
        return sum(len(json.loads(turn.tool_calls)) for turn in self.turns if turn.tool_calls)

    @property
    def characters(self) -> int:
        """How long the text is that will be tokenized, as far as that can be said before; 0 for token ids."""
        if not self.is_chat:
            return sum(len(prompt) for prompt in self.prompts if isinstance(prompt, str))
        return sum(map(len, self.tools)) + sum(
            TURN_CHARACTERS
            + sum(map(len, (turn.role, turn.content, turn.name, turn.tool_calls, turn.reasoning)))
            for turn in self.turns
        )

    @property
    def bytes_held(self) -> int:
        """About what its prompt takes in memory, as a message and as Python's objects, until it has ended."""
        tokens = 0 if self.is_chat else sum(len(one) for one in self.prompts if not isinstance(one, str))
        return 2 * self.characters + TOKEN_BYTES * tokens

    @property
    def is_chat(self) -> bool:
        """True if the prompt is a conversation."""
        return isinstance(self.prompt, tuple) and isinstance(next(iter(self.prompt), None), ChatTurn)


def about_prompt(number: int, error: InvalidRequestError) -> InvalidRequestError:
    """The same error, which says which of several prompts is at fault."""
    told = type(error)(f"{of_prompt(number)}{error}", error.param)
    told.number = number
    return told


def of_prompt(number: int) -> str:
    """How a sentence about one of several prompts begins."""
    return f"prompt {number}: "


@dataclass(frozen=True, slots=True)
class Answer:
    """One of a request's n answers, or, while it streams, a piece of one.

    stopped_by: the token id or the string that ended it; neither is part of token_ids and text.
    finish_reason: None while it goes on.
    error: in words, with FinishReason.ERROR.
    prompt_logprobs: of its prompt, or the next ones; all of them are there before its first token. vector: of
        its prompt, with its end: floats of 32 bits.
    """

    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None
    error: str = ""
    prompt_logprobs: PromptLogprobs | None = None
    vector: bytes = b""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took; output_tokens of all its answers together.

    ttft_ms, total_ms: from arrival at the router to the first and to the last token.
    cached_tokens: prompt tokens that were not computed for it, because their KV blocks were there.
    """

    prompt_tokens: int
    output_tokens: int
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    preemptions: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AnswerPosition:
    """Where a client stands in one answer: tokens, characters and positions of the prompt that it has."""

    index: int
    tokens: int = 0
    characters: int = 0
    prompt: int = 0


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """A piece of one answer, and what was before it. usage: of this answer, with its last piece."""

    piece: Answer
    token_offset: int
    character_offset: int
    usage: Usage | None = None
