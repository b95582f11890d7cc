"""Separate batching with prefill priority on a pipeline (vLLM's continuous batching without chunks)."""

from __future__ import annotations

from controller.scheduler.decode import MicroBatch
from controller.scheduler.policies.mixed import MixedSteps
from controller.scheduler.state import PipelineState


class SeparatePolicy(MixedSteps):
    """A batch that is back prefills whole prompts if any may be admitted, else decodes."""

    name = "separate"

    def __init__(self, token_budget: int, extra_batches: int = 0) -> None:
        super().__init__(extra_batches)
        self.token_budget = token_budget

    def form(self, state: PipelineState, batch: MicroBatch) -> None:
        """See the class."""
        if chunks := state.take_prompts(self.token_budget, whole=True):
            state.send(batch, chunks, members=False)
            return
        state.make_room(batch)
        if batch.members:
            state.send(batch, [])
