"""Puts the events of a stream together to a completion."""

from __future__ import annotations

from itertools import chain

from tidepipe.client.errors import RequestCancelledError
from tidepipe.client.types import Completion, StreamEvent
from tidepipe_common.dialects import Gathering, Spoken
from tidepipe_common.errors import TidePipeError
from tidepipe_common.types.prompt_reading import PromptLog
from tidepipe_common.types.request import Answer, Usage


class Collector:
    """Takes the events of one request; `completion` when the last has come."""

    def __init__(self, request_id: str, each: int = 0) -> None:
        """each: answers to each of several prompts; 0: there is one prompt."""
        self._request_id = request_id
        self._each = each
        self._events: dict[int, list[StreamEvent]] = {}

    def add(self, event: StreamEvent) -> None:
        """Take one event."""
        self._events.setdefault(event.index, []).append(event)

    def completion(self) -> Completion:
        """The answers, by index. RequestCancelledError if one of them was cut: a part is no completion."""
        parts = [self._events[index] for index in sorted(self._events)]
        spoken = tuple(map(_spoken, parts))
        return Completion(
            self._request_id, tuple(map(_answer, parts)), self._usage(parts), spoken, parts[0][-1].reading
        )

    def _usage(self, parts: list[list[StreamEvent]]) -> Usage:
        each = self._each or max(1, len(parts))
        return _together([_usage(parts[first : first + each]) for first in range(0, len(parts), each)])


def _answer(events: list[StreamEvent]) -> Answer:
    last = events[-1]
    if last.finish_reason is None:
        raise TidePipeError(f"answer {last.index} of request {last.request_id} is not complete")
    if not last.finish_reason.whole:
        raise RequestCancelledError(f"request {last.request_id} was cancelled before its answer was complete")
    log = PromptLog()
    for event in events:
        if event.prompt_logprobs is not None:
            log.merge(event.prompt_logprobs)
    return Answer(
        index=last.index,
        text="".join(event.text for event in events),
        token_ids=tuple(chain.from_iterable(event.token_ids for event in events)),
        logprobs=tuple(chain.from_iterable(event.logprobs for event in events)),
        finish_reason=last.finish_reason,
        stopped_by=last.stopped_by,
        prompt_logprobs=log.read(0, len(log)),
        vector=last.vector,
    )


def _spoken(events: list[StreamEvent]) -> Spoken:
    gathering = Gathering()
    for event in events:
        gathering.add(event.parts)
    return gathering.spoken(events[-1].warning)


def _usage(parts: list[list[StreamEvent]]) -> Usage:
    usages = [events[-1].usage for events in parts]
    known = [usage for usage in usages if usage is not None]
    return Usage(
        prompt_tokens=max((usage.prompt_tokens for usage in known), default=0),
        output_tokens=sum(usage.output_tokens for usage in known),
        ttft_ms=min((usage.ttft_ms for usage in known), default=0.0),
        total_ms=max((usage.total_ms for usage in known), default=0.0),
        preemptions=sum(usage.preemptions for usage in known),
        cached_tokens=min((usage.cached_tokens for usage in known), default=0),
    )


def _together(usages: list[Usage]) -> Usage:
    """Of several prompts."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        output_tokens=sum(usage.output_tokens for usage in usages),
        ttft_ms=min((usage.ttft_ms for usage in usages), default=0.0),
        total_ms=max((usage.total_ms for usage in usages), default=0.0),
        preemptions=sum(usage.preemptions for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
    )
