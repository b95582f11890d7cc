"""The bodies and events of the Responses API, as types; see tidepipe_common.openai.answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import Field
from typing_extensions import TypedDict

from tidepipe_common.openai.answers import PageEnds, PositionEntry, closed

Status = Literal["completed", "failed", "in_progress", "cancelled", "queued", "incomplete"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Seconds: TypeAlias = Annotated[int, Field(description="Unix time, seconds.")]


@closed
class OutputText(TypedDict):
    """Words for the reader. logprobs: if they were asked for."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[PositionEntry]


@closed
class ReasoningText(TypedDict):
    """A thought."""

    type: Literal["reasoning_text"]
    text: str


@closed
class MessageItem(TypedDict):
    """What the model says."""

    type: Literal["message"]
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


@closed
class ReasoningItem(TypedDict):
    """What it thinks. summary: always empty."""

    type: Literal["reasoning"]
    id: str
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningText]


@closed
class FunctionCallItem(TypedDict):
    """A function that it calls."""

    type: Literal["function_call"]
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str
    namespace: NotRequired[str]


@closed
class CustomCallItem(TypedDict):
    """A custom tool that it calls, with a text."""

    type: Literal["custom_tool_call"]
    id: str
    status: ItemStatus
    call_id: str
    name: str
    input: str
    namespace: NotRequired[str]


OutputItem: TypeAlias = MessageItem | ReasoningItem | FunctionCallItem | CustomCallItem


@closed
class InputTokensDetails(TypedDict):
    """cached_tokens: of the input, found computed."""

    cached_tokens: int
    cache_write_tokens: int


@closed
class OutputTokensDetails(TypedDict):
    """reasoning_tokens: of the output, those of thoughts."""

    reasoning_tokens: int


@closed
class ResponseUsage(TypedDict):
    """What a response took, tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


@closed
class ResponseError(TypedDict):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


@closed
class IncompleteDetails(TypedDict):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


@closed
class ResponseBody(TypedDict):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: Seconds
    completed_at: Seconds | None
    status: Status
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


@closed
class DeletedResponse(TypedDict):
    """A response that is no more."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


@closed
class InputItemList(PageEnds):
    """A page of what a response was asked with."""

    object: Literal["list"]
    data: list[dict[str, Any]]


class ResponseEvent(TypedDict):
    """An event of a streamed response. What else it has depends on its type, as in OpenAI's API."""

    type: str
    sequence_number: int
