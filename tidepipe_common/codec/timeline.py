"""Timelines: protobuf (pieces) <-> domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from tidepipe.v1 import timeline_pb2 as pb
from tidepipe_common.codec.plan import phase_from_wire, phase_to_wire
from tidepipe_common.types.timeline import MemorySample, PhaseTurn, StageSpan, Timeline

Entry = TypeVar("Entry")

PIECE = 4096
"""Entries of one message, which stays far below gRPC's limit of 4 MiB."""


def timeline_to_wire(timeline: Timeline) -> Iterator[pb.GetTimelineResponse]:
    """In pieces; the first one says whose it is even if there is nothing else to say."""
    yield pb.GetTimelineResponse(instance_id=timeline.instance_id, stages=timeline.stages)
    name = timeline.instance_id
    for spans in _pieces(timeline.spans):
        yield pb.GetTimelineResponse(instance_id=name, spans=[_span_to_wire(one) for one in spans])
    for turns in _pieces(timeline.turns):
        yield pb.GetTimelineResponse(
            instance_id=name,
            turns=[
                pb.PhaseTurn(
                    at_s=one.at_s,
                    before=phase_to_wire(one.before),
                    after=phase_to_wire(one.after),
                    reason=one.reason,
                )
                for one in turns
            ],
        )
    for samples in _pieces(timeline.samples):
        yield pb.GetTimelineResponse(
            instance_id=name,
            samples=[
                pb.MemorySample(
                    at_s=one.at_s,
                    used=one.used,
                    forecast=one.forecast,
                    running=one.running,
                    waiting=one.waiting,
                )
                for one in samples
            ],
        )


def add_piece(timeline: Timeline, piece: pb.GetTimelineResponse) -> None:
    """Take a piece of this instance's timeline over."""
    timeline.stages = max(timeline.stages, piece.stages)
    timeline.spans += [
        StageSpan(
            one.stage,
            one.step_id,
            phase_from_wire(one.phase),
            one.tokens,
            one.decode_rows,
            one.start_s,
            one.end_s,
        )
        for one in piece.spans
    ]
    timeline.turns += [
        PhaseTurn(one.at_s, phase_from_wire(one.before), phase_from_wire(one.after), one.reason)
        for one in piece.turns
    ]
    timeline.samples += [
        MemorySample(
            one.at_s,
            one.used,
            one.forecast,
            one.running if one.HasField("running") else None,
            one.waiting if one.HasField("waiting") else None,
        )
        for one in piece.samples
    ]


def _pieces(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    return (entries[begin : begin + PIECE] for begin in range(0, len(entries), PIECE))


def _span_to_wire(span: StageSpan) -> pb.StageSpan:
    return pb.StageSpan(
        stage=span.stage,
        step_id=span.step_id,
        phase=phase_to_wire(span.phase),
        tokens=span.tokens,
        decode_rows=span.decode_rows,
        start_s=span.start_s,
        end_s=span.end_s,
    )
