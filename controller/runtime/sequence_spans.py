"""The spans of an instance's sequences: when each was computed, was answered, was preempted, ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from controller.scheduler.actions import (
    Action,
    Dispatch,
    Emit,
    Finish,
    HandedOver,
    Preempted,
    PrefixFound,
    Refused,
)
from controller.scheduler.events import Event, NewSequence, StagesLost
from tidepipe_common.telemetry.traces import NO_TRACES, Attribute, Span, Traces
from tidepipe_common.types.sampling import FinishReason


class SequenceSpans:
    """One span for each sequence whose router records it; follows the scheduler's actions."""

    def __init__(self, traces: Traces = NO_TRACES, instance_id: str = "") -> None:
        self._traces = traces
        self._instance_id = instance_id
        self._open: dict[str, Span] = {}
        self._untold: set[str] = set()
        self._by_context: dict[str, Span] = {}

    def begin(self, arrival: NewSequence) -> NewSequence:
        """The sequence, which from now on runs within a span of its own; the stages' go into that."""
        if not arrival.trace_context:
            return arrival
        attributes: dict[str, Attribute] = {
            "tidepipe.instance": self._instance_id,
            "tidepipe.sequence": arrival.sequence_id,
            "gen_ai.usage.input_tokens": len(arrival.prompt),
            "tidepipe.output_tokens_before": len(arrival.output),
        }
        span = self._traces.begin("sequence", arrival.trace_context, attributes, "server")
        if span.context:
            self._open[arrival.sequence_id] = span
            self._untold.add(arrival.sequence_id)
            self._by_context[span.context] = span
        return replace(arrival, trace_context=span.context)

    def note(self, event: Event, actions: Sequence[Action]) -> None:
        """The scheduler heard an event and decided."""
        if not self._open:
            return
        if isinstance(event, StagesLost):
            for known in self._open.values():
                known.event("stages lost", {"reason": event.detail})
        for action in actions:
            self._follow(action)

    def _follow(self, action: Action) -> None:
        match action:
            case Dispatch(plan):
                for start in plan.starts:
                    if (span := self._by_context.get(start.trace_context)) is not None:
                        span.event("computed", {"step": plan.step_id, "phase": plan.phase.value})
            case Emit(sequence_ids):
                for sequence_id in self._untold.intersection(sequence_ids):
                    self._untold.discard(sequence_id)
                    self._open[sequence_id].event("first token")
            case PrefixFound(sequence_id, cached_tokens):
                if (span := self._open.get(sequence_id)) is not None:
                    span.note({"gen_ai.usage.cache_read.input_tokens": cached_tokens})
            case Preempted(sequence_id, reason):
                if (span := self._open.get(sequence_id)) is not None:
                    span.event("preempted", {"reason": str(reason)})
            case Refused():
                self._end(action.sequence_id, action.detail)
            case HandedOver(sequence_id, _, reason):
                if (span := self._open.get(sequence_id)) is not None:
                    span.event("handed over", {"reason": str(reason)})
                    self._end(sequence_id, "")
            case Finish():
                self._finish(action)

    def _finish(self, action: Finish) -> None:
        if (span := self._open.get(action.sequence_id)) is None:
            return
        span.note(
            {
                "gen_ai.usage.output_tokens": action.output_tokens,
                "gen_ai.response.finish_reasons": [action.reason.value],
                "tidepipe.preemptions": action.preemptions,
            }
        )
        self._end(action.sequence_id, action.error if action.reason is FinishReason.ERROR else "")

    def _end(self, sequence_id: str, error: str) -> None:
        span = self._open.pop(sequence_id, None)
        if span is not None:
            self._untold.discard(sequence_id)
            self._by_context.pop(span.context, None)
            span.end(error)
