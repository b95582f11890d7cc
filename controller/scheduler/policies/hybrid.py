"""Hybrid batching on a pipeline: decode rows, then prompt chunks up to a token budget (Sarathi-Serve)."""

from __future__ import annotations

from controller.scheduler.decode import MicroBatch
from controller.scheduler.ordering import FinishTogether
from controller.scheduler.policies.mixed import MixedSteps
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState
from controller.scheduler.stealing import Stealing


class HybridPolicy(MixedSteps):
    """Each step takes the decode rows of its batch and fills the budget with chunks of prompts.

    As engines have it, first come is first served and a sequence stays in its batch. What `auto` does beside
    its steps can be had here as well, to see what it earns: an order by predicted lengths, and stealing.
    """

    def __init__(
        self,
        token_budget: int,
        extra_batches: int = 0,
        *,
        name: str = "hybrid",
        order: bool = False,
        stealing: Stealing | None = None,
    ) -> None:
        """name: as users chose it; PaDG's instance is this one, under a router that opens windows."""
        super().__init__(extra_batches)
        self.name = name
        self.token_budget = token_budget
        self._order = FinishTogether() if order else None
        self._stealing = stealing

    def place(self, state: PipelineState, sequence: Sequence, batch: MicroBatch | None) -> None:
        """It stays where its prompt was computed, or goes where batches are short of work."""
        if self._stealing is None:
            super().place(state, sequence, batch)
        else:
            state.batches.add(sequence)

    def plan(self, state: PipelineState, now: float) -> None:
        """Give each batch that is back its next step."""
        if self._order is not None and state.waiting:
            self._order.apply(state)
        super().plan(state, now)

    def take_back(self, state: PipelineState, batch: MicroBatch) -> None:
        """Not where stealing says who takes from the pool."""
        if self._stealing is None:
            super().take_back(state, batch)

    def form(self, state: PipelineState, batch: MicroBatch) -> None:
        """See the class."""
        if self._stealing is not None:
            state.stats.steals += self._stealing.balance(state.batches, batch, 0)
        state.make_room(batch)
        chunks = state.take_prompts(self.token_budget - len(batch.members))
        if batch.members or chunks:
            state.send(batch, chunks)
