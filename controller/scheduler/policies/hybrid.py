"""Hybrid batching on a pipeline: decode rows, then prompt chunks up to a token budget (Sarathi-Serve)."""

from __future__ import annotations

from controller.scheduler.decode import MicroBatch
from controller.scheduler.policies.mixed import MixedSteps
from controller.scheduler.state import PipelineState


class HybridPolicy(MixedSteps):
    """Each step takes the decode rows of its batch and fills the budget with chunks of prompts."""

    def __init__(self, token_budget: int, extra_batches: int = 0, *, name: str = "hybrid") -> None:
        """name: as users chose it; PaDG's instance is this one, under a router that opens windows."""
        super().__init__(extra_batches)
        self.name = name
        self.token_budget = token_budget

    def form(self, state: PipelineState, batch: MicroBatch) -> None:
        """See the class."""
        state.make_room(batch)
        chunks = state.take_prompts(self.token_budget - len(batch.members))
        if batch.members or chunks:
            state.send(batch, chunks)
