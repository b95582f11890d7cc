"""Every span of a sequence ends, however the sequence leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from controller.runtime.sequence_spans import SequenceSpans
from controller.scheduler.actions import Action, Finish, HandedOver, Reason, Refusal, Refused
from controller.scheduler.events import NewSequence, Tick
from tidepipe_common.types.sampling import FinishReason, SamplingParams


class Recorded:
    """A span, and the only one that there is."""

    def __init__(self) -> None:
        self.context = "own"
        self.ended: list[str] = []

    def begin(self, *_: object, **__: object) -> Any:
        return self

    def note(self, attributes: Mapping[str, Any]) -> None:
        assert not self.ended

    def event(self, name: str, attributes: Mapping[str, Any] | None = None) -> None:
        assert not self.ended

    def end(self, error: str = "") -> None:
        self.ended.append(error)


@pytest.mark.parametrize(
    ("left", "error"),
    [
        (Finish("a", FinishReason.STOP, 1), ""),
        (Finish("a", FinishReason.ERROR, 1, error="it broke"), "it broke"),
        (Refused("a", Refusal.INVALID, "too long"), "too long"),
        (HandedOver("a", None, Reason("drained")), ""),
    ],
)
def test_it_ends(left: Action, error: str) -> None:
    span = Recorded()
    spans = SequenceSpans(span)
    began = spans.begin(NewSequence("a", (1,), SamplingParams(), trace_context="caller"))
    assert began.trace_context == "own"
    spans.note(Tick(), [left])
    assert span.ended == [error]
