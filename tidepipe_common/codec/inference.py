"""Requests and answers of clients: protobuf <-> domain (inference.proto)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from tidepipe.v1 import inference_pb2 as pb
from tidepipe_common.codec.sampling import (
    count_fields,
    finish_from_wire,
    finish_to_wire,
    logprobs_from_wire,
    logprobs_to_wire,
    prompt_logprobs_to_wire,
    sampling_from_wire,
)
from tidepipe_common.dialects import Reading, dialect_named
from tidepipe_common.dialects.reader import ThoughtMarks
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import (
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_ID_CHARACTERS,
    MAX_TOOLS,
    MAX_TURNS,
    MAX_USER_CHARACTERS,
    check_bytes,
    check_count,
)
from tidepipe_common.types.request import (
    AnswerDelta,
    AnswerPosition,
    ChatTurn,
    GenerationRequest,
    Prompt,
    Usage,
)
from tidepipe_common.types.results import SequenceEnd, SequenceUpdate
from tidepipe_common.types.thought import TemplateOptions
from tidepipe_common.types.tool_choice import ToolChoice

MAX_GRACE_MS = 600_000
MAX_PIECE_GAP_MS = 10_000


def check_request_id(request_id: str) -> None:
    """Raise InvalidRequestError if it cannot be a request's id."""
    if not request_id:
        raise InvalidRequestError("request_id is required: choose a unique one", "request_id")
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS or not request_id.isprintable():
        raise InvalidRequestError(
            f"request_id must have 1 to {MAX_REQUEST_ID_CHARACTERS} printable characters", "request_id"
        )


def request_from_wire(message: pb.InferenceRequest) -> GenerationRequest:
    """Protobuf to domain. InvalidRequestError for what has no domain form."""
    _check_size(message)
    check_request_id(message.request_id)
    if message.disconnect_grace_ms > MAX_GRACE_MS:
        raise InvalidRequestError(
            f"disconnect_grace_ms must be at most {MAX_GRACE_MS}, got {message.disconnect_grace_ms}",
            "disconnect_grace_ms",
        )
    if message.piece_gap_ms > MAX_PIECE_GAP_MS:
        raise InvalidRequestError(
            f"piece_gap_ms must be at most {MAX_PIECE_GAP_MS}, got {message.piece_gap_ms}", "piece_gap_ms"
        )
    return GenerationRequest(
        request_id=message.request_id,
        prompt=_prompt(message),
        sampling=sampling_from_wire(message.sampling),
        model=message.model or None,
        skip_text=message.skip_text,
        keep_special_tokens=message.keep_special_tokens,
        marks=message.chat.marks,
        tools=tuple(message.chat.tools),
        tool_choice=_tool_choice(message.chat.tool_choice),
        template=TemplateOptions(
            message.chat.reasoning_effort,
            message.chat.template_arguments,
            continued=message.chat.continue_final_message,
            opened=not message.chat.no_generation_prompt,
        ),
        ttft_ms=message.ttft_ms if message.HasField("ttft_ms") else None,
        tpot_ms=message.tpot_ms if message.HasField("tpot_ms") else None,
        piece_gap_s=message.piece_gap_ms / 1000,
        client=message.user[:MAX_USER_CHARACTERS],
        clamp_max_tokens=message.clamp_max_tokens,
        cache_salt=message.cache_salt,
        priority=message.priority,
        background=message.background,
        more_prompts=_more_prompts(message),
    )


def _check_size(message: pb.InferenceRequest) -> None:
    """Before anything is made of it: what is wrong with it must not cost more than to say so."""
    count_fields(message.sampling)
    check_count("more_prompts", len(message.more_prompts), MAX_PROMPTS - 1, "prompts", param="prompt")
    tokens = len(message.token_ids.ids) + sum(len(one.token_ids.ids) for one in message.more_prompts)
    check_count("the prompt", tokens, MAX_PROMPT_TOKENS, "tokens", param="prompt")
    check_count("messages", len(message.chat.messages), MAX_TURNS)
    check_count("tools", len(message.chat.tools), MAX_TOOLS)
    check_count("tool_choice", len(message.chat.tool_choice.names), MAX_TOOLS)
    if message.sampling.structure.HasField("composed"):
        raise InvalidRequestError("a structure must be a JSON schema or a regular expression", "structure")
    if message.sampling.HasField("thought"):
        raise InvalidRequestError("thought is not a client's to set; see max_reasoning_tokens", "thought")
    # The size is found out by writing it all down once more: last.
    check_bytes("a request", message.ByteSize(), MAX_REQUEST_BYTES, "request")


def grace_s(message: pb.InferenceRequest) -> float:
    """How long the request goes on when its client is away."""
    return message.disconnect_grace_ms / 1000


def positions_from_wire(messages: Sequence[pb.StreamPosition]) -> list[AnswerPosition]:
    """Protobuf to domain. InvalidRequestError if there are more than a request has answers."""
    check_count("resume", len(messages), MAX_PROMPTS)
    return [
        AnswerPosition(message.index, message.tokens, message.characters, message.prompt_positions)
        for message in messages
    ]


def reading_to_wire(reading: Reading) -> pb.Dialect:
    """Domain to protobuf."""
    thoughts = reading.dialect.thoughts
    return pb.Dialect(
        name=reading.dialect.name,
        thought_begins=() if thoughts is None else thoughts.begins,
        thought_ends=() if thoughts is None else thoughts.ends,
        thinking=reading.thinking,
        calls_before=reading.calls_before,
    )


def reading_from_wire(message: pb.Dialect) -> Reading | None:
    """Protobuf to domain; None if it names a family that is not known here."""
    try:
        dialect = dialect_named(message.name)
    except InvalidRequestError:
        return None
    thoughts = None
    if message.thought_begins and message.thought_ends:
        thoughts = ThoughtMarks(tuple(message.thought_begins), tuple(message.thought_ends))
    return Reading(replace(dialect, thoughts=thoughts), message.thinking, message.calls_before)


def delta_to_wire(request_id: str, delta: AnswerDelta, reading: Reading | None = None) -> pb.AnswerDelta:
    """Domain to protobuf. reading: of an answer's first piece."""
    piece = delta.piece
    message = pb.AnswerDelta(
        request_id=request_id,
        index=piece.index,
        token_offset=delta.token_offset,
        character_offset=delta.character_offset,
        token_ids=piece.token_ids,
        text=piece.text,
        logprobs=logprobs_to_wire(piece.logprobs),
        finish_reason=finish_to_wire(piece.finish_reason),
        error=piece.error,
        dialect=None if reading is None else reading_to_wire(reading),
        prompt_logprobs=prompt_logprobs_to_wire(piece.prompt_logprobs),
        vector=piece.vector,
    )
    if isinstance(piece.stopped_by, str):
        message.stop_string = piece.stopped_by
    elif piece.stopped_by is not None:
        message.stop_token_id = piece.stopped_by
    if delta.usage is not None:
        message.usage.CopyFrom(_usage_to_wire(delta.usage))
    return message


def output_to_bytes(delta: AnswerDelta) -> bytes:
    """Tokens of a piece, and the end if it ends the answer as it was asked for; empty if it has neither."""
    message = delta_to_wire("", delta)
    for unwanted in ("text", "usage", "character_offset", "prompt_logprobs", "vector"):
        message.ClearField(unwanted)
    reason = finish_from_wire(message.finish_reason)
    if reason is not None and not reason.whole:
        message.ClearField("finish_reason")
    return message.SerializeToString() if message.token_ids or message.finish_reason else b""


def output_from_bytes(data: bytes) -> SequenceUpdate:
    """What `output_to_bytes` made."""
    message = pb.AnswerDelta.FromString(data)
    reason = finish_from_wire(message.finish_reason)
    end = None
    if reason is not None:
        end = SequenceEnd("", reason, message.stop_token_id if message.HasField("stop_token_id") else None)
    return SequenceUpdate(
        "", message.token_offset, list(message.token_ids), logprobs_from_wire(message.logprobs), end
    )


def _usage_to_wire(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.output_tokens,
        ttft_ms=usage.ttft_ms,
        total_ms=usage.total_ms,
        preemptions=usage.preemptions,
        cached_tokens=usage.cached_tokens,
    )


_Mode: TypeAlias = Literal["auto", "none", "required"]
_MODE_TO_WIRE: dict[_Mode, pb.ToolChoice.Mode.ValueType] = {
    "auto": pb.ToolChoice.MODE_AUTO,
    "none": pb.ToolChoice.MODE_NONE,
    "required": pb.ToolChoice.MODE_REQUIRED,
}
_MODES: dict[int, _Mode] = {wire: mode for mode, wire in _MODE_TO_WIRE.items()}


def tool_choice_to_wire(choice: ToolChoice) -> pb.ToolChoice:
    """Domain to protobuf."""
    return pb.ToolChoice(mode=_MODE_TO_WIRE[choice.mode], names=choice.names, single=not choice.parallel)


def _tool_choice(message: pb.ToolChoice) -> ToolChoice:
    mode = _MODES.get(message.mode or pb.ToolChoice.MODE_AUTO)
    if mode is None:
        raise InvalidRequestError(
            f"tool_choice has the mode {message.mode}, which is unknown here", "tool_choice"
        )
    return ToolChoice(mode, tuple(message.names), parallel=not message.single)


def _turn(turn: pb.ChatMessage) -> ChatTurn:
    return ChatTurn(turn.role, turn.content, turn.name, turn.tool_calls, turn.tool_call_id, turn.reasoning)


def _more_prompts(message: pb.InferenceRequest) -> tuple[str | tuple[int, ...], ...]:
    if message.more_prompts and message.HasField("chat"):
        raise InvalidRequestError("more_prompts have no place beside a chat", "more_prompts")
    # What is empty is refused with its number, where all is checked.
    return tuple(
        tuple(one.token_ids.ids) if one.HasField("token_ids") else one.text for one in message.more_prompts
    )


def _prompt(message: pb.InferenceRequest) -> Prompt:
    prompt: Prompt
    match message.WhichOneof("prompt"):
        case "text":
            prompt = message.text
        case "token_ids":
            prompt = tuple(message.token_ids.ids)
        case "chat":
            prompt = tuple(_turn(turn) for turn in message.chat.messages)
        case _:
            raise InvalidRequestError("the request has no prompt: set text, token_ids or chat", "prompt")
    if not prompt:
        raise InvalidRequestError("the prompt is empty", "prompt")
    return prompt
