"""The bodies that the Messages API answers with, as types."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from tidepipe_common.openai.answers import closed


@closed
class MessageUsage(TypedDict):
    """Tokens. Of the prompt: what was computed, and what was found."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


@closed
class MessageAnswer(TypedDict):
    """A message. content: blocks of type text, thinking and tool_use."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


@closed
class MessageTokens(TypedDict):
    """How long the prompt of a message is."""

    input_tokens: int


@closed
class MessageErrorDetail(TypedDict):
    """What went wrong."""

    type: str
    message: str


@closed
class MessageError(TypedDict):
    """Body of an error."""

    type: Literal["error"]
    error: MessageErrorDetail
    request_id: str | None
