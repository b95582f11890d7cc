"""The bodies of answers, errors, files and batches in OpenAI's API, as types.

What is sent is made as these types, and /openapi.json describes them: pydantic reads their schemas. They are
typed dictionaries rather than models, since a chunk of a stream is made for every token: a model takes twice
as long to make and to write, and a checker of types sees both alike.
"""

from __future__ import annotations

from typing import (
    Annotated,
    Literal,
    NotRequired,  # pydantic wants these before Python 3.12
    TypeAlias,
)

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

WholeReason = Literal["stop", "length"]
"""Why a whole answer ended."""

ChatReason = Literal["stop", "length", "tool_calls"]
"""The same of a chat's answer: tool_calls if it did not break off, and calls a tool."""

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
"""Those that OpenAI's API has; no client knows another one."""

StopReason: TypeAlias = Annotated[int | str | None, Field(description="Token id or text that ended it.")]
Time: TypeAlias = Annotated[int | None, Field(description="Unix time, seconds.")]

closed = with_config(ConfigDict(extra="forbid"))
"""A type without other fields than its own."""


@closed
class ErrorDetails(TypedDict):
    """param: the field or header at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


@closed
class Error(TypedDict):
    """An error."""

    error: ErrorDetails


@closed
class PromptDetails(TypedDict):
    """cached_tokens: of the prompt, found computed; of n answers, by all of them."""

    cached_tokens: int


@closed
class CompletionDetails(TypedDict):
    """reasoning_tokens: of the output, the model's thoughts with their marks."""

    reasoning_tokens: int


@closed
class Usage(TypedDict):
    """What a request took, tokens. The details: not while the answer is on its way.

    completion_tokens_details: of models whose thoughts are told from what they say.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[PromptDetails]
    completion_tokens_details: NotRequired[CompletionDetails]


# -- models -------------------------------------------------------------------------------------------


@closed
class ModelTargets(TypedDict):
    """What is promised to a model's requests that bring no targets, milliseconds."""

    ttft_ms: float
    tpot_ms: float


@closed
class Model(TypedDict):
    """A model that is served, by one of its names. root: the first of them.

    parent: of an adapter (LoRA) the model's first name.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    vocab_size: int
    slo: ModelTargets
    parent: NotRequired[str]


@closed
class ModelList(TypedDict):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


# -- log-probabilities --------------------------------------------------------------------------------


@closed
class TokenEntry(TypedDict):
    """A token of a chat, spelled."""

    token: str
    logprob: float
    bytes: list[int]


@closed
class PositionEntry(TokenEntry):
    """The chosen token, and the most likely ones."""

    top_logprobs: list[TokenEntry]


@closed
class ChatLogprobs(TypedDict):
    """Of a chat's choice."""

    content: list[PositionEntry]
    refusal: None


@closed
class CompletionLogprobs(TypedDict):
    """Of a completion's choice, by column; with echo the prompt's before it, the first of them null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


@closed
class PromptLogprob(TypedDict):
    """How likely a token was at a place in the prompt. rank: 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobsBody: TypeAlias = Annotated[
    list[dict[str, PromptLogprob] | None],
    Field(description="Of each token of the prompt: by token id, its own and the most likely; null first."),
]


# -- chats --------------------------------------------------------------------------------------------


ReaderWarning: TypeAlias = Annotated[
    str, Field(description="What looked like a call of a tool and was none; its text is in the content.")
]


@closed
class FunctionCall(TypedDict):
    """What is called. arguments: a text that is one JSON object."""

    name: str
    arguments: str


@closed
class ToolCall(TypedDict):
    """A call of a tool. id: the tool's answer names it."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class _Reasoning(TypedDict):
    """The model's thoughts, under both names that clients know. Of models that think."""

    reasoning_content: NotRequired[str | None]
    reasoning: NotRequired[str | None]


@closed
class AssistantMessage(_Reasoning):
    """The answer itself. content: null if there is nothing beside thoughts and calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]


@closed
class ChatChoice(TypedDict):
    """One of the n answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatReason
    stop_reason: StopReason
    token_ids: NotRequired[list[int]]
    warning: NotRequired[ReaderWarning]


@closed
class ChatAnswer(TypedDict):
    """A finished chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobsBody]


@closed
class FunctionDelta(TypedDict):
    """What is new of a call: its name at once, its arguments as they come."""

    name: NotRequired[str]
    arguments: str


@closed
class ToolCallDelta(TypedDict):
    """The next piece of a call; id and type with the first one."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


@closed
class Delta(_Reasoning):
    """What is new of an answer; its first chunk says who speaks."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallDelta]]


@closed
class ChatDelta(TypedDict):
    """The next piece of one of the n answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatReason | None
    stop_reason: NotRequired[StopReason]
    token_ids: NotRequired[list[int]]
    warning: NotRequired[ReaderWarning]


@closed
class ChatChunk(TypedDict):
    """A chunk of a streamed chat. usage: if it is asked for; in the last chunk, which has no choice, all."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatDelta]
    usage: NotRequired[Usage | None]
    prompt_token_ids: NotRequired[list[int]]


# -- completions --------------------------------------------------------------------------------------


class _CompletionPiece(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    stop_reason: StopReason
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


@closed
class CompletionChoice(_CompletionPiece):
    """One of the n answers."""

    finish_reason: WholeReason
    prompt_logprobs: NotRequired[PromptLogprobsBody]


@closed
class CompletionDelta(_CompletionPiece):
    """The next piece of one of the n answers."""

    finish_reason: WholeReason | None


@closed
class CompletionAnswer(TypedDict):
    """A finished completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


@closed
class CompletionChunk(TypedDict):
    """A chunk of a streamed completion; usage as a chat's."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionDelta]
    usage: NotRequired[Usage | None]


AnswerBody: TypeAlias = ChatAnswer | CompletionAnswer
AnswerChunk: TypeAlias = ChatChunk | CompletionChunk


# -- files and batches --------------------------------------------------------------------------------


FilePurpose = Literal["batch", "batch_output"]


@closed
class File(TypedDict):
    """A stored file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: FilePurpose
    status: Literal["processed"]
    status_details: None


@closed
class DeletedFile(TypedDict):
    """A file that is no more."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "cancelling", "completed", "failed", "cancelled", "expired"
]


@closed
class BatchError(TypedDict):
    """What is wrong with a batch, or with one of its lines."""

    code: str
    message: str
    line: int | None
    param: str | None


@closed
class BatchErrors(TypedDict):
    """All that is wrong."""

    object: Literal["list"]
    data: list[BatchError]


@closed
class RequestCounts(TypedDict):
    """Of a batch's requests."""

    total: int
    completed: int
    failed: int


@closed
class Batch(TypedDict):
    """A file's requests, which are answered in the background."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: Time
    finalizing_at: Time
    completed_at: Time
    failed_at: Time
    expired_at: Time
    cancelling_at: Time
    cancelled_at: Time
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class PageEnds(TypedDict):
    """Where a page of a list begins and ends. has_more: there is a next one, which begins behind last_id."""

    first_id: str | None
    last_id: str | None
    has_more: bool


@closed
class FileList(PageEnds):
    """A page of files."""

    object: Literal["list"]
    data: list[File]


@closed
class BatchList(PageEnds):
    """A page of batches."""

    object: Literal["list"]
    data: list[Batch]
