"""The seam between the scheduler and its policy."""

from __future__ import annotations

from typing import Protocol

from controller.scheduler.decode import MicroBatch
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState


class Policy(Protocol):
    """Decides what the next steps contain. It may keep notes of its own, but owns no sequence."""

    @property
    def name(self) -> str:
        """As users choose it."""
        ...

    def microbatches(self, stages: int) -> int:
        """Micro-batches for a pipeline of this many stages, unless the user says."""
        ...

    def plan(self, state: PipelineState, now: float) -> None:
        """Dispatch as much as may be in flight. Called after each event while the stages are up."""
        ...

    def place(self, state: PipelineState, sequence: Sequence, batch: MicroBatch | None) -> None:
        """A prompt is done, in a step of `batch` (None: of no batch): where does the sequence decode?"""
        ...
