"""The body of POST /v1/responses: checked here, and then said as the body of a chat, which knows the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_TOOLS
from tidepipe_common.openai.bodies import CacheSalt, Message, ModelName, ServiceTier, parse_chat
from tidepipe_common.openai.fields import LogitBias, Stop, StopTokenIds, UserName
from tidepipe_common.openai.metadata import Metadata
from tidepipe_common.openai.numbers import (
    Count,
    MinP,
    OutputTokens,
    Penalty,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopLogprobs,
    TopP,
)
from tidepipe_common.openai.reasoning import Effort, TemplateArguments
from tidepipe_common.openai.validation import (
    NOTHING_ELSE,
    Refusal,
    StrictModel,
    renamed,
    unknown_field,
    validate,
)
from tidepipe_common.responses.items import (
    ADDITIONAL_TOOLS,
    INPUT_SCHEMA,
    ITEM_REFERENCE,
    Item,
    chat_messages,
    input_items,
)
from tidepipe_common.responses.tools import TOOLS_SCHEMA, ChatTools, chat_tool_choice, chat_tools
from tidepipe_common.text.json_text import kind
from tidepipe_common.text.text import quoted
from tidepipe_common.types.request import GenerationRequest

MAX_ID_CHARACTERS = 128
MAX_INCLUDED = 32
LOGPROBS = "message.output_text.logprobs"
INCLUDED = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
)
"""What `include` may name. The first is there; thoughts come as they are, not encrypted; what the others are
about does not occur here."""
TEMPERATURE, TOP_P = 1.0, 1.0

ResponseId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARACTERS)]

_NAMED = {"type": "string", "minLength": 1}
_TOOL_CHOICE = {
    "anyOf": [
        {"enum": ["none", "auto", "required", None]},
        {
            "type": "object",
            "properties": {"type": {"enum": ["function", "custom"]}, "name": _NAMED},
            "required": ["type", "name"],
            "additionalProperties": NOTHING_ELSE,
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "allowed_tools"},
                "mode": {"enum": ["auto", "required"]},
                "tools": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"enum": ["function", "custom"]}, "name": _NAMED},
                        "required": ["type", "name"],
                        "additionalProperties": NOTHING_ELSE,
                    },
                    "minItems": 1,
                    "maxItems": MAX_TOOLS,
                },
            },
            "required": ["type", "mode", "tools"],
            "additionalProperties": NOTHING_ELSE,
        },
    ]
}
_FORMAT = {
    "oneOf": [
        {"type": "null"},
        {
            "type": "object",
            "properties": {"type": {"enum": ["text", "json_object"]}},
            "required": ["type"],
            "additionalProperties": NOTHING_ELSE,
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "name": {},
                "schema": {"type": "object"},
                "strict": {},
                "description": {},
            },
            "required": ["type", "schema"],
            "additionalProperties": NOTHING_ELSE,
        },
    ]
}

IGNORED = frozenset(
    {
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "max_tool_calls",
        "client_metadata",
    }
)
"""Fields that change nothing of the answer."""
REFUSED = {
    "conversation": Refusal("conversations are not kept here; chain responses with previous_response_id"),
    "prompt": Refusal("prompt templates are not kept here; send instructions and input"),
    "context_management": Refusal("contexts are not compacted here; send fewer items", ([],)),
    "moderation": Refusal("there is no moderation here"),
    "background_options": Refusal("not supported"),
    "image": Refusal("only text is supported"),
    "max_tokens": Refusal("is called max_output_tokens here"),
    "max_completion_tokens": Refusal("is called max_output_tokens here"),
    "messages": Refusal("is called input here"),
    "response_format": Refusal("is called text.format here"),
    "reasoning_effort": Refusal("is called reasoning.effort here"),
    "n": Refusal("a response has one answer", (1,)),
    "logprobs": Refusal(f"is asked for with include: [{LOGPROBS!r}]", (False,)),
}
"""Fields that would change the answer, but cannot."""
_AS_IN_CHATS = (
    "model",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "safety_identifier",
    "service_tier",
    "stream",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "cache_salt",
    "max_reasoning_tokens",
    "chat_template_kwargs",
)
"""Fields that a chat has under the same name."""
_NAMES_IN_CHATS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}


class ReasoningOptions(StrictModel):
    """How to think. Thoughts come as they are; there are no summaries of them."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class TextOptions(StrictModel):
    """The form of the words."""

    format: Annotated[Any, WithJsonSchema(_FORMAT)] = None
    verbosity: Annotated[str, WithJsonSchema({"enum": ["medium"]})] | None = None


class ResponseStreamOptions(StrictModel):
    """How to stream. include_obfuscation is about padding that TidePipe never sends."""

    include_obfuscation: bool | None = None


class ResponsesBody(StrictModel):
    """Body of /v1/responses. null means the default, as if the field were absent."""

    input: Annotated[Any, WithJsonSchema(INPUT_SCHEMA)]
    model: ModelName | None = None
    instructions: str | None = None
    previous_response_id: ResponseId | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: OutputTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: TopLogprobs | None = None
    include: Annotated[list[Literal[INCLUDED]], Field(max_length=MAX_INCLUDED)] | None = None  # type: ignore[valid-type]
    tools: Annotated[Any, WithJsonSchema({"anyOf": [TOOLS_SCHEMA, {"type": "null"}]})] = None
    tool_choice: Annotated[Any, WithJsonSchema(_TOOL_CHOICE)] = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    metadata: Metadata | None = None
    truncation: Literal["disabled"] | None = None
    user: UserName | None = None
    safety_identifier: UserName | None = None
    service_tier: ServiceTier | None = None
    # Extensions, as chats have them.
    seed: Seed | None = None
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: StopTokenIds | None = None
    cache_salt: CacheSalt | None = None
    max_reasoning_tokens: Count | None = None
    chat_template_kwargs: TemplateArguments | None = None


@dataclass(frozen=True, slots=True)
class ResponseAsk:
    """What a body asks for, but for what came before it.

    chat: the body of a chat without its messages. items: the input, see `input_items`. references: ids of
    items in it that are kept elsewhere. logprobs: to be shown. echo: fields as the response has them again.
    """

    chat: dict[str, Any]
    items: list[Item]
    tools: ChatTools
    instructions: str | None
    previous: str | None
    store: bool
    stored_by_wish: bool
    background: bool
    stream: bool
    logprobs: bool
    echo: dict[str, Any] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """Ids of items that the input names without repeating them."""
        return [item["id"] for item in self.items if item["type"] == ITEM_REFERENCE]

    def chat_body(self, before: Sequence[Item] = ()) -> dict[str, Any]:
        """The body of the chat that it is. before: items of the responses before it."""
        start = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        items = [*before, *self.items]
        return {**self.chat, "messages": start + chat_messages(items, Message.model_fields)}

    def request(self, request_id: str, before: Sequence[Item] = ()) -> GenerationRequest:
        """The request of that chat. InvalidRequestError names the field as it is called here."""
        return parse_response_chat(self.chat_body(before), request_id)


def parse_response_chat(chat: dict[str, Any], request_id: str) -> GenerationRequest:
    """The request of a `chat_body`."""
    try:
        return parse_chat(chat, request_id)
    except InvalidRequestError as error:
        raise in_our_names(error) from None


def parse_response(body: object) -> ResponseAsk:
    """From the decoded JSON of a body. InvalidRequestError names the field at fault."""
    checked = validate(ResponsesBody, body, REFUSED, IGNORED)
    raw: dict[str, Any] = body if isinstance(body, dict) else {}
    items = input_items(checked.input)
    if not items:
        raise InvalidRequestError("input must not be empty", "input")
    more_tools = [item["tools"] for item in items if item["type"] == ADDITIONAL_TOOLS]
    tools = chat_tools(checked.tools, *more_tools)
    # Without tools there is nothing to choose, and some clients say so.
    choice = chat_tool_choice(checked.tool_choice)
    if not tools.functions and choice in ("auto", "none"):
        choice = None
    _check_streaming(checked)
    logprobs = LOGPROBS in (checked.include or ()) or bool(checked.top_logprobs)
    chat = {name: raw[name] for name in _AS_IN_CHATS if raw.get(name) is not None}
    options, text = checked.reasoning or ReasoningOptions(), checked.text or TextOptions()
    form = _response_format(text.format)
    more = {
        "max_completion_tokens": checked.max_output_tokens,
        "logprobs": True if logprobs else None,
        "top_logprobs": (checked.top_logprobs or 0) if logprobs else None,
        "tools": tools.functions or None,
        "tool_choice": choice,
        "reasoning_effort": options.effort,
        "response_format": form,
        "verbosity": text.verbosity,
    }
    chat |= {name: value for name, value in more.items() if value is not None}
    background = bool(checked.background)
    return ResponseAsk(
        chat=chat,
        items=items,
        tools=tools,
        instructions=checked.instructions,
        previous=checked.previous_response_id,
        store=checked.store is not False,
        stored_by_wish=bool(checked.store) or background,
        background=background,
        stream=bool(checked.stream),
        logprobs=logprobs,
        echo={
            "background": background,
            "instructions": checked.instructions,
            "max_output_tokens": checked.max_output_tokens,
            "max_tool_calls": None,
            "metadata": checked.metadata or {},
            "parallel_tool_calls": checked.parallel_tool_calls is not False,
            "previous_response_id": checked.previous_response_id,
            "prompt_cache_key": _named(raw.get("prompt_cache_key")),
            "reasoning": {"effort": options.effort, "summary": None},
            "safety_identifier": checked.safety_identifier,
            "service_tier": "default",
            "temperature": TEMPERATURE if checked.temperature is None else checked.temperature,
            "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
            "tool_choice": "auto" if checked.tool_choice is None else checked.tool_choice,
            "tools": [*(checked.tools or []), *(tool for some in more_tools for tool in some or [])],
            "top_logprobs": checked.top_logprobs or 0,
            "top_p": TOP_P if checked.top_p is None else checked.top_p,
            "truncation": "disabled",
            "user": checked.user,
        },
    )


def _check_streaming(body: ResponsesBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options is only allowed with stream: true", "stream_options")
    if body.background and body.store is False:
        raise InvalidRequestError(
            "background: true needs store: true: whoever asks for the answer later finds it there", "store"
        )


def _named(value: Any) -> str | None:
    return value[:MAX_ID_CHARACTERS] if isinstance(value, str) else None


def _response_format(value: Any) -> Any:
    """`text.format` as a chat has it."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"text.format must be an object, got {kind(value)}", "text.format")
    match value.get("type"):
        case "json_schema":
            if unknown := unknown_field(value, {"type", "name", "schema", "strict", "description"}):
                raise InvalidRequestError(
                    f"text.format has the unknown field {quoted(unknown)}", "text.format"
                )
            named = {name: part for name, part in value.items() if name != "type"}
            return {"type": "json_schema", "json_schema": named}
        case "text" | "json_object" as of if unknown_field(value, {"type"}) is None:
            return {"type": of}
        case "text" | "json_object":
            raise InvalidRequestError("text.format of this type has no other field", "text.format")
        case other:
            raise InvalidRequestError(
                f"text.format must have the type 'text', 'json_object' or 'json_schema', got {quoted(other)}",
                "text.format",
            )


def in_our_names(error: InvalidRequestError) -> InvalidRequestError:
    """What is wrong with a chat, with the names that its fields have here."""
    return renamed(error, _NAMES_IN_CHATS)
