"""SamplingParams, log-probabilities and finish reasons: protobuf <-> domain."""

from __future__ import annotations

from collections.abc import Iterable

from tidepipe.v1 import sampling_pb2 as pb
from tidepipe_common.limits import (
    MAX_LOGIT_BIAS,
    MAX_SAMPLING_BYTES,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_THOUGHT_MARKS,
    check_bytes,
    check_count,
)
from tidepipe_common.types.prompt_reading import PromptLogprobs
from tidepipe_common.types.sampling import (
    FinishReason,
    Pooling,
    PositionLogprobs,
    SamplingParams,
    TokenLogprob,
)
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.thought import ThoughtMarks

MAX_FIELD_CHARACTERS = 64
"""Of the name of a request's field."""

_FINISH_TO_WIRE: dict[FinishReason, pb.FinishReason.ValueType] = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: pb.FINISH_REASON_DEADLINE,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_POOLING_TO_WIRE: dict[Pooling | None, pb.Pooling.ValueType] = {
    None: pb.POOLING_UNSPECIFIED,
    Pooling.MEAN: pb.POOLING_MEAN,
    Pooling.LAST: pb.POOLING_LAST,
    Pooling.CLS: pb.POOLING_CLS,
}
_POOLING_FROM_WIRE: dict[int, Pooling | None] = {wire: how for how, wire in _POOLING_TO_WIRE.items()}
_FINISH_FROM_WIRE: dict[int, FinishReason] = {wire: reason for reason, wire in _FINISH_TO_WIRE.items()}


def finish_to_wire(reason: FinishReason | None) -> pb.FinishReason.ValueType:
    """None (not ended yet) becomes UNSPECIFIED."""
    return pb.FINISH_REASON_UNSPECIFIED if reason is None else _FINISH_TO_WIRE[reason]


def finish_from_wire(reason: int) -> FinishReason | None:
    """UNSPECIFIED, and reasons of a newer contract, become None."""
    return _FINISH_FROM_WIRE.get(reason)


def sampling_to_wire(params: SamplingParams) -> pb.SamplingParams:
    """Domain to protobuf."""
    return pb.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed,
        logit_bias=params.logit_bias,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop_token_ids=params.stop_token_ids,
        stop=params.stop,
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
        n=params.n,
        structure=_structure_to_wire(params.structure),
        max_reasoning_tokens=params.max_reasoning_tokens,
        thought=_thought_to_wire(params.thought),
        prompt_logprobs=params.prompt_logprobs,
        pooling=_POOLING_TO_WIRE[params.pooling],
    )


def sampling_from_wire(message: pb.SamplingParams) -> SamplingParams:
    """Protobuf to domain; unset fields get their documented defaults. Does not check ranges."""
    return SamplingParams(
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_k=message.top_k,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        seed=message.seed if message.HasField("seed") else None,
        logit_bias=dict(message.logit_bias),
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        stop_token_ids=tuple(message.stop_token_ids),
        stop=tuple(message.stop),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        n=message.n or 1,
        structure=_structure_from_wire(message.structure),
        max_reasoning_tokens=(
            message.max_reasoning_tokens if message.HasField("max_reasoning_tokens") else None
        ),
        thought=_thought_from_wire(message.thought) if message.HasField("thought") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        pooling=_POOLING_FROM_WIRE.get(message.pooling),
    )


def count_fields(message: pb.SamplingParams) -> None:
    """Raise InvalidRequestError if it repeats a field too often: asked before it is turned into objects."""
    check_count("stop_token_ids", len(message.stop_token_ids), MAX_STOP_TOKEN_IDS)
    check_count("logit_bias", len(message.logit_bias), MAX_LOGIT_BIAS)
    check_count("stop", len(message.stop), MAX_STOP_STRINGS)
    thought = message.thought
    most = max(len(thought.begins), len(thought.ends), len(thought.forced))
    check_count("thought", most, MAX_THOUGHT_MARKS)


def check_carried(message: pb.SamplingParams) -> None:
    """Raise InvalidRequestError if one sequence carries more than a controller and its stages take."""
    check_bytes(
        "what a sequence carries besides its tokens", message.ByteSize(), MAX_SAMPLING_BYTES, "sampling"
    )
    count_fields(message)


def _thought_to_wire(thought: ThoughtMarks | None) -> pb.ThoughtMarks | None:
    if thought is None:
        return None
    return pb.ThoughtMarks(begins=thought.begins, ends=thought.ends, forced=thought.forced, open=thought.open)


def _thought_from_wire(message: pb.ThoughtMarks) -> ThoughtMarks:
    return ThoughtMarks(tuple(message.begins), tuple(message.ends), tuple(message.forced), open=message.open)


def _structure_to_wire(structure: Structure | None) -> pb.Structure | None:
    match structure:
        case None:
            return None
        case Structure("regex", text):
            return pb.Structure(regex=text)
        case Structure("composed", text, field):
            return pb.Structure(composed=text, field=field)
        case Structure(_, text):
            return pb.Structure(json_schema=text)


def _structure_from_wire(message: pb.Structure) -> Structure | None:
    kind = message.WhichOneof("form")
    if kind is None:
        return None
    field = message.field[:MAX_FIELD_CHARACTERS] or "response_format"
    return Structure(kind, getattr(message, kind), field)


def logprobs_to_wire(positions: Iterable[PositionLogprobs]) -> list[pb.PositionLogprobs]:
    """Domain to protobuf."""
    return [
        pb.PositionLogprobs(
            chosen=_token_to_wire(position.chosen), top=[_token_to_wire(token) for token in position.top]
        )
        for position in positions
    ]


def logprobs_from_wire(messages: Iterable[pb.PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
    """Protobuf to domain."""
    return tuple(
        PositionLogprobs(
            chosen=_token_from_wire(message.chosen),
            top=tuple(_token_from_wire(token) for token in message.top),
        )
        for message in messages
    )


def prompt_logprobs_to_wire(read: PromptLogprobs | None) -> pb.PromptLogprobs | None:
    """Domain to protobuf."""
    if read is None:
        return None
    return pb.PromptLogprobs(
        first_position=read.first,
        top=read.top,
        token_ids=read.token_ids,
        logprobs=read.logprobs,
        ranks=read.ranks,
    )


def prompt_logprobs_from_wire(message: pb.PromptLogprobs) -> PromptLogprobs | None:
    """Protobuf to domain; None if it has no positions, or its columns do not fit each other."""
    if not message.ranks:
        return None
    read = PromptLogprobs(
        message.first_position, message.top, message.token_ids, message.logprobs, message.ranks
    )
    return read if read.fits else None


def _token_to_wire(token: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(token_id=token.token_id, logprob=token.logprob)


def _token_from_wire(message: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token_id=message.token_id, logprob=message.logprob)
