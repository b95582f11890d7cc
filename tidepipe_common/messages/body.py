"""Bodies of /v1/messages and /v1/messages/count_tokens: checked here, and then said as that of a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_STOP_STRING_CHARACTERS, MAX_STOP_STRINGS, MAX_TOOLS, MAX_TURNS
from tidepipe_common.messages.blocks import THOUGHT, chat_messages, system_text
from tidepipe_common.messages.tools import chat_tool_choice, chat_tools
from tidepipe_common.openai.bodies import Message, ModelName, parse_chat
from tidepipe_common.openai.fields import UserName
from tidepipe_common.openai.numbers import Count, OutputTokens, TopK, TopP
from tidepipe_common.openai.validation import NOTHING_ELSE, Refusal, StrictModel, renamed, validate
from tidepipe_common.text.json_text import kind
from tidepipe_common.types.request import GenerationRequest

_OBJECT = {"type": "object"}
_TEXT_OR_BLOCKS = {"anyOf": [{"type": "string"}, {"type": "array", "items": _OBJECT}]}
_MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": ["user", "assistant", "system"]}, "content": _TEXT_OR_BLOCKS},
    "required": ["role", "content"],
    "additionalProperties": NOTHING_ELSE,
}
_MESSAGES = {"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": MAX_TURNS}
_TOOLS = {"anyOf": [{"type": "array", "items": _OBJECT, "maxItems": MAX_TOOLS}, {"type": "null"}]}
_SYSTEM = {"anyOf": [*_TEXT_OR_BLOCKS["anyOf"], {"type": "null"}]}
_STOP = {
    "anyOf": [
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARACTERS},
            "maxItems": MAX_STOP_STRINGS,
        },
        {"type": "null"},
    ]
}
_SINGLE = {"disable_parallel_tool_use": {"type": ["boolean", "null"]}}
_TOOL_CHOICE = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"enum": ["auto", "any", "none"]}, **_SINGLE},
            "required": ["type"],
        },
        {
            "type": "object",
            "properties": {"type": {"const": "tool"}, "name": {"type": "string"}, **_SINGLE},
            "required": ["type", "name"],
        },
        {"type": "null"},
    ]
}

IGNORED = frozenset(
    {
        "service_tier",
        "betas",
        "cache_control",
        "inference_geo",
        "speed",
        "diagnostics",
        "user_profile_id",
        "workspace_id",
    }
)
"""Fields that change nothing of the answer."""
REFUSED = {
    "container": Refusal("no code is run here"),
    "mcp_servers": Refusal("no MCP servers are called here", ([],)),
    "max_tokens_to_sample": Refusal("is called max_tokens here"),
    "stop": Refusal("is called stop_sequences here"),
    "prompt": Refusal("is called messages here"),
    "n": Refusal("a message has one answer", (1,)),
}
"""Fields that would change the answer, but cannot."""
_EFFORTS = {"max": "xhigh"}
"""What is called otherwise in chats."""
_NAMES_IN_CHATS = {
    "stop": "stop_sequences",
    "max_completion_tokens": "max_tokens",
    "response_format": "output_config",
    "reasoning_effort": "output_config",
    "max_reasoning_tokens": "thinking",
    "user": "metadata",
}


class Metadata(StrictModel):
    """About the request."""

    user_id: UserName | None = None


class Thinking(StrictModel):
    """Whether to think before the answer, and how much. display: thoughts come as they are."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(StrictModel):
    """The form that the words are held to."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(StrictModel):
    """How to answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class _Asked(StrictModel):
    messages: Annotated[Any, WithJsonSchema(_MESSAGES)]
    model: ModelName | None = None
    system: Annotated[Any, WithJsonSchema(_SYSTEM)] = None
    tools: Annotated[Any, WithJsonSchema(_TOOLS)] = None
    tool_choice: Annotated[Any, WithJsonSchema(_TOOL_CHOICE)] = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: Annotated[Any, WithJsonSchema({})] = None
    """What becomes of long histories: only Anthropic's own servers edit them, so they stay as they are."""

    def chat(self) -> dict[str, Any]:
        """The body of the chat that asks the same."""
        system = [] if self.system is None else [{"role": "system", "content": system_text(self.system)}]
        messages = [*system, *chat_messages(self.messages)]
        if THOUGHT not in Message.model_fields:
            messages = [{name: said for name, said in one.items() if name != THOUGHT} for one in messages]
        output = self.output_config or OutputConfig()
        form = None
        if output.format is not None:
            named = {"name": "answer", "schema": output.format.schema_, "strict": True}
            form = {"type": "json_schema", "json_schema": named}
        chat = {
            "messages": messages,
            "model": self.model,
            "tools": chat_tools(self.tools) or None,
            **chat_tool_choice(self.tool_choice),
            "response_format": form,
            **_thinking(self.thinking, output.effort),
        }
        return {name: value for name, value in chat.items() if value is not None}


class MessagesBody(_Asked):
    """Body of /v1/messages. null means the default, as if the field were absent."""

    max_tokens: OutputTokens
    stop_sequences: Annotated[Any, WithJsonSchema(_STOP)] = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    metadata: Metadata | None = None


class CountBody(_Asked):
    """Body of /v1/messages/count_tokens."""


def parse_message(body: object, request_id: str) -> GenerationRequest:
    """Request from the decoded JSON of a body. InvalidRequestError names the field as it is called here."""
    asked = validate(MessagesBody, body, REFUSED, IGNORED)
    user = asked.metadata.user_id if asked.metadata is not None else None
    more = {
        "max_completion_tokens": asked.max_tokens,
        "stop": _stop_sequences(asked.stop_sequences),
        "stream": asked.stream,
        "temperature": asked.temperature,
        "top_k": asked.top_k,
        "top_p": asked.top_p,
        "user": user,
    }
    return _request(
        asked.chat() | {name: value for name, value in more.items() if value is not None}, request_id
    )


def parse_count(body: object, request_id: str) -> GenerationRequest:
    """The request whose prompt is to be counted."""
    return _request(validate(CountBody, body, REFUSED, IGNORED).chat(), request_id)


def _request(chat: dict[str, Any], request_id: str) -> GenerationRequest:
    try:
        return parse_chat(chat, request_id)
    except InvalidRequestError as error:
        raise in_our_names(error) from None


def _stop_sequences(value: Any) -> list[Any] | None:
    """As a chat has them, which knows a lone text as well."""
    if value is not None and not isinstance(value, list):
        raise InvalidRequestError(f"stop_sequences must be a list, got {kind(value)}", "stop_sequences")
    return value or None


def _thinking(thinking: Thinking | None, effort: str | None) -> dict[str, Any]:
    """As a chat asks for it."""
    if thinking is None:
        return {"reasoning_effort": _EFFORTS.get(effort or "", effort)}
    if thinking.type == "disabled":
        return {"reasoning_effort": "none"}
    if thinking.type == "enabled" and thinking.budget_tokens is None:
        raise InvalidRequestError("thinking.budget_tokens is required with type 'enabled'", "thinking")
    return {
        "reasoning_effort": _EFFORTS.get(effort or "", effort),
        "max_reasoning_tokens": thinking.budget_tokens,
    }


def in_our_names(error: InvalidRequestError) -> InvalidRequestError:
    """What is wrong with a chat, with the names that its fields have here."""
    return renamed(error, _NAMES_IN_CHATS)
