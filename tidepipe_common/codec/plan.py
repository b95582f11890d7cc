"""Step plans and what stages tell of them: protobuf <-> domain (`stage.proto`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, chain

from tidepipe.v1 import controller_pb2, stage_pb2
from tidepipe_common.codec.kv_transfer import fetched_from_wire, fetched_to_wire
from tidepipe_common.codec.sampling import (
    logprobs_from_wire,
    logprobs_to_wire,
    prompt_logprobs_from_wire,
    prompt_logprobs_to_wire,
    sampling_from_wire,
    sampling_to_wire,
)
from tidepipe_common.limits import PIECE_BYTES
from tidepipe_common.settings.defaults import MAX_STEP_TOKENS
from tidepipe_common.types.kv_transfer import KvFetched
from tidepipe_common.types.length_signal import LengthSignal
from tidepipe_common.types.plan import (
    BlockCopies,
    DecodeRows,
    FailureKind,
    Heartbeat,
    Phase,
    PlanRow,
    RowError,
    SampledTokens,
    SequenceStart,
    StageFailure,
    StageNews,
    StageTimes,
    StepPlan,
    StepReport,
)
from tidepipe_common.types.prompt_reading import PromptPiece

MAX_HISTORY_TOKENS = PIECE_BYTES // 8
"""Of one start that is sent ahead; an id takes five bytes at most."""
MAX_AHEAD_BYTES = 512 * 1024 * 1024
"""Of all starts that are sent ahead of one plan; a sequence's history has four bytes a token there."""

_PHASE_TO_WIRE: dict[Phase, controller_pb2.Phase.ValueType] = {
    Phase.IDLE: controller_pb2.PHASE_UNSPECIFIED,
    Phase.PREFILL: controller_pb2.PHASE_PREFILL,
    Phase.DECODE: controller_pb2.PHASE_DECODE,
    Phase.MIXED: controller_pb2.PHASE_MIXED,
}
_PHASE_FROM_WIRE: dict[int, Phase] = {wire: phase for phase, wire in _PHASE_TO_WIRE.items()}
_KIND_TO_WIRE: dict[FailureKind, stage_pb2.StageFailure.Kind.ValueType] = {
    FailureKind.LINK: stage_pb2.StageFailure.KIND_LINK,
    FailureKind.EXECUTION: stage_pb2.StageFailure.KIND_EXECUTION,
    FailureKind.PROTOCOL: stage_pb2.StageFailure.KIND_PROTOCOL,
}
_KIND_FROM_WIRE: dict[int, FailureKind] = {wire: kind for kind, wire in _KIND_TO_WIRE.items()}


def phase_to_wire(phase: Phase) -> controller_pb2.Phase.ValueType:
    """Domain to protobuf."""
    return _PHASE_TO_WIRE[phase]


def phase_from_wire(phase: int) -> Phase:
    """Protobuf to domain; phases of a newer contract become IDLE."""
    return _PHASE_FROM_WIRE.get(phase, Phase.IDLE)


class WirePlan:
    """A plan as the stages of a pipeline are told it. What all are told alike is encoded once."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self._alike: stage_pb2.StepPlan | None = None

    def write(self, message: stage_pb2.StepPlan, *, first: bool, last: bool) -> None:
        """The part that one stage needs: tokens go to the first stage, sampling to the last."""
        if self._alike is None:
            self._alike = _told_all(self.plan)
        message.CopyFrom(self._alike)
        if first:
            message.token_ids.extend(self.plan.decode.token_ids)
            for row in self.plan.listed:
                message.token_ids.extend(row.token_ids)
        if last:
            for entry, start in zip(message.starts, self.plan.starts, strict=True):
                entry.wants_signal = start.wants_signal
                entry.sampling.CopyFrom(sampling_to_wire(start.sampling))
                entry.history_token_ids.extend(start.history)
                entry.eos_token_ids.extend(start.eos_token_ids)

    def requests(self, epoch: int, *, first: bool, last: bool) -> Iterator[stage_pb2.RunRequest]:
        """The messages that tell one stage of the step: one, or several where its new sequences carry much.

        What is left in the plan's own message is bounded by the step: rows, and blocks that the pool has.
        """
        request = stage_pb2.RunRequest(epoch=epoch)
        message = request.plan
        self.write(message, first=first, last=last)
        if message.starts and message.ByteSize() > PIECE_BYTES:
            yield from _sent_ahead(epoch, message.starts)
            del message.starts[:]
        yield request


def _told_all(plan: StepPlan) -> stage_pb2.StepPlan:
    decode, listed = plan.decode, plan.listed
    new_block_counts = [0] * len(decode)
    for index, blocks in decode.new_blocks:
        new_block_counts[index] = len(blocks)
    decode_blocks = chain.from_iterable(blocks for _, blocks in decode.new_blocks)
    message = stage_pb2.StepPlan(
        step_id=plan.step_id,
        phase=_PHASE_TO_WIRE[plan.phase],
        releases=plan.releases,
        sequence_keys=[*decode.keys, *(row.key for row in listed)],
        first_positions=[*decode.positions, *(row.first_position for row in listed)],
        token_counts=[*(1,) * len(decode), *(row.count for row in listed)],
        new_block_counts=[*new_block_counts, *(len(row.new_blocks) for row in listed)],
        new_block_ids=[*decode_blocks, *(block for row in listed for block in row.new_blocks)],
        sample=[*(True,) * len(decode), *(row.sample for row in listed)],
    )
    if plan.copies:
        message.save_blocks.extend(block for block, _ in plan.copies.saves)
        message.save_slots.extend(slot for _, slot in plan.copies.saves)
        message.load_slots.extend(slot for slot, _ in plan.copies.loads)
        message.load_blocks.extend(block for _, block in plan.copies.loads)
    for start in plan.starts:
        message.starts.add(
            sequence_key=start.key,
            prompt_tokens=start.prompt_tokens,
            trace_context=start.trace_context,
            adapter=start.adapter,
            begins_at=start.begins_at,
        )
    return message


def _sent_ahead(epoch: int, starts: Iterable[stage_pb2.SequenceStart]) -> Iterator[stage_pb2.RunRequest]:
    ahead, size = stage_pb2.RunRequest(epoch=epoch), 0
    for part in chain.from_iterable(map(_start_parts, starts)):
        part_size = part.ByteSize()
        if size and size + part_size > PIECE_BYTES:
            yield ahead
            ahead, size = stage_pb2.RunRequest(epoch=epoch), 0
        ahead.starts.append(part)
        size += part_size
    yield ahead


def _start_parts(start: stage_pb2.SequenceStart) -> Iterator[stage_pb2.SequenceStart]:
    """The start itself, or several where its history is long."""
    history = start.history_token_ids
    if len(history) <= MAX_HISTORY_TOKENS:
        yield start
        return
    for begin in range(0, len(history), MAX_HISTORY_TOKENS):
        part = stage_pb2.SequenceStart(sequence_key=start.sequence_key)
        if not begin:
            part.CopyFrom(start)
            del part.history_token_ids[:]
        part.history_token_ids.extend(history[begin : begin + MAX_HISTORY_TOKENS])
        yield part


class StartsAhead:
    """Sequences that were sent ahead of the plan with which they begin."""

    def __init__(self) -> None:
        self._starts: dict[int, stage_pb2.SequenceStart] = {}
        self._bytes = 0

    def add(self, starts: Iterable[stage_pb2.SequenceStart]) -> None:
        """More of them, or more of one's history. ValueError: more than any step begins with."""
        for start in starts:
            self._bytes += start.ByteSize()
            if self._bytes > MAX_AHEAD_BYTES or len(self._starts) > MAX_STEP_TOKENS:
                raise ValueError(
                    f"{len(self._starts)} sequences, {self._bytes} bytes, were sent ahead of one plan"
                )
            known = self._starts.setdefault(start.sequence_key, start)
            if known is not start:
                known.history_token_ids.extend(start.history_token_ids)

    def take(self) -> list[stage_pb2.SequenceStart]:
        """All that came since the last plan."""
        starts, self._starts, self._bytes = list(self._starts.values()), {}, 0
        return starts


def plan_from_wire(message: stage_pb2.StepPlan, ahead: Iterable[stage_pb2.SequenceStart] = ()) -> StepPlan:
    """Protobuf to domain. ahead: starts that were sent before. ValueError if the columns do not fit.

    Rows of one token that samples stay columns, as far as they come first; that is all rows of a decode step.
    """
    counts = tuple(message.token_counts)
    block_counts = tuple(message.new_block_counts)
    keys = tuple(message.sequence_keys)
    positions = tuple(message.first_positions)
    sample = tuple(message.sample)
    if not len(keys) == len(counts) == len(block_counts) == len(positions) == len(sample):
        raise ValueError("the plan's columns differ in length")
    tokens, blocks = tuple(message.token_ids), tuple(message.new_block_ids)
    if sum(block_counts) != len(blocks) or (tokens and sum(counts) != len(tokens)):
        raise ValueError("the plan's token or block lists do not fit their counts")
    columns = _decode_rows(counts, sample)
    token_ends = list(accumulate(counts)) if tokens and columns < len(keys) else [0] * len(keys)
    block_ends = list(accumulate(block_counts)) if blocks else [0] * len(keys)

    def new_blocks(row: int) -> tuple[int, ...]:
        return blocks[block_ends[row] - block_counts[row] : block_ends[row]]

    decode = DecodeRows(
        keys[:columns],
        positions[:columns],
        tokens[:columns],
        tuple([(row, new_blocks(row)) for row in range(columns) if block_counts[row]]) if blocks else (),
    )
    listed = tuple(
        [
            PlanRow(
                key=keys[row],
                first_position=positions[row],
                count=counts[row],
                token_ids=tokens[token_ends[row] - counts[row] : token_ends[row]] if tokens else (),
                new_blocks=new_blocks(row),
                sample=sample[row],
            )
            for row in range(columns, len(keys))
        ]
    )
    starts = tuple(
        SequenceStart(
            key=entry.sequence_key,
            sampling=sampling_from_wire(entry.sampling),
            prompt_tokens=entry.prompt_tokens,
            history=tuple(entry.history_token_ids),
            eos_token_ids=tuple(entry.eos_token_ids),
            adapter=entry.adapter,
            trace_context=entry.trace_context,
            begins_at=entry.begins_at,
            wants_signal=entry.wants_signal,
        )
        for entry in (*ahead, *message.starts)
    )
    phase = phase_from_wire(message.phase)
    copies = _copies_from_wire(message)
    return StepPlan(message.step_id, phase, listed, starts, tuple(message.releases), decode, copies)


def _copies_from_wire(message: stage_pb2.StepPlan) -> BlockCopies:
    if not message.save_slots and not message.load_slots:
        return BlockCopies()
    try:
        return BlockCopies(
            tuple(zip(message.save_blocks, message.save_slots, strict=True)),
            tuple(zip(message.load_slots, message.load_blocks, strict=True)),
        )
    except ValueError:
        raise ValueError("the plan's columns of copies differ in length") from None


def _decode_rows(counts: tuple[int, ...], sample: tuple[bool, ...]) -> int:
    """How many rows have one token and sample, before the first that is otherwise."""
    if counts.count(1) == sample.count(True) == len(counts):
        return len(counts)
    rows = enumerate(zip(counts, sample, strict=True))
    return next(row for row, (count, sampled) in rows if count != 1 or not sampled)


def times_to_wire(times: Iterable[StageTimes]) -> list[stage_pb2.StageTimes]:
    """Domain to protobuf."""
    return [
        stage_pb2.StageTimes(
            compute_s=one.compute_s,
            idle_s=one.idle_s,
            plan_wait_s=one.plan_wait_s,
            input_wait_s=one.input_wait_s,
        )
        for one in times
    ]


def times_from_wire(times: Iterable[stage_pb2.StageTimes]) -> tuple[StageTimes, ...]:
    """Protobuf to domain."""
    return tuple([StageTimes(one.compute_s, one.idle_s, one.plan_wait_s, one.input_wait_s) for one in times])


def news_to_wire(news: StageNews) -> stage_pb2.RunResponse:
    """Domain to protobuf."""
    match news:
        case StepReport():
            report = stage_pb2.StepReport(
                step_id=news.step_id,
                compute_s=news.own.compute_s,
                idle_s=news.own.idle_s,
                plan_wait_s=news.own.plan_wait_s,
                input_wait_s=news.own.input_wait_s,
                before=times_to_wire(news.before),
            )
            if news.sampled is not None:
                report.token_ids.extend(news.sampled.token_ids)
                report.logprobs.extend(logprobs_to_wire(news.sampled.logprobs))
                for piece in news.sampled.prompts:
                    report.prompts.add(
                        sequence_key=piece.key,
                        first_position=piece.first,
                        count=piece.count,
                        logprobs=prompt_logprobs_to_wire(piece.prompt_logprobs_read),
                        vector=piece.vector,
                    )
                for signal in news.sampled.signals:
                    report.signals.add(sequence_key=signal.key, values=signal.values)
                for error in news.sampled.errors:
                    report.errors.add(sequence_key=error.key, detail=error.detail, fault=error.fault)
            return stage_pb2.RunResponse(step=report)
        case Heartbeat():
            return stage_pb2.RunResponse(
                heartbeat=stage_pb2.Heartbeat(
                    rss_bytes=news.rss_bytes,
                    running_step_id=news.running_step_id,
                    running_s=news.running_s,
                    done_step_id=news.done_step_id,
                )
            )
        case StageFailure(kind, detail, step_id):
            failure = stage_pb2.StageFailure(kind=_KIND_TO_WIRE[kind], detail=detail, step_id=step_id)
            return stage_pb2.RunResponse(failure=failure)
        case KvFetched():
            return fetched_to_wire(news)


def news_from_wire(message: stage_pb2.RunResponse) -> StageNews | None:
    """Protobuf to domain; None for news of a newer contract, EXECUTION for failures of a newer kind."""
    which = message.WhichOneof("report")
    if which == "step":
        step = message.step
        errors = tuple(
            [
                RowError(one.sequence_key, one.detail, one.fault if one.HasField("fault") else None)
                for one in step.errors
            ]
        )
        prompts = tuple(
            [
                PromptPiece(
                    one.sequence_key,
                    one.first_position,
                    one.count,
                    prompt_logprobs_from_wire(one.logprobs),
                    one.vector,
                )
                for one in step.prompts
            ]
        )
        signals = tuple([LengthSignal(one.sequence_key, one.values) for one in step.signals])
        logprobs = logprobs_from_wire(step.logprobs)
        sampled = SampledTokens(tuple(step.token_ids), logprobs, errors, prompts, signals)
        own = StageTimes(step.compute_s, step.idle_s, step.plan_wait_s, step.input_wait_s)
        return StepReport(step.step_id, own, sampled, times_from_wire(step.before))
    if which == "heartbeat":
        heart = message.heartbeat
        return Heartbeat(heart.rss_bytes, heart.running_step_id, heart.running_s, heart.done_step_id)
    if which == "failure":
        failure = message.failure
        kind = _KIND_FROM_WIRE.get(failure.kind, FailureKind.EXECUTION)
        return StageFailure(kind, failure.detail, failure.step_id)
    if which == "fetched":
        return fetched_from_wire(message.fetched)
    return None
