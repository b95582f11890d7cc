"""The base of policies that form every step anew, of whoever is not in flight."""

from __future__ import annotations

from controller.scheduler.decode import MicroBatch
from controller.scheduler.policies.mixed import MixedSteps
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState


class RegroupedSteps(MixedSteps):
    """Micro-batches are only places for steps in flight: their members go into the pool with the results."""

    def place(self, state: PipelineState, sequence: Sequence, batch: MicroBatch | None) -> None:
        """It decodes with whoever is free when the next step is formed."""
        state.batches.add(sequence)

    def plan(self, state: PipelineState, now: float) -> None:
        """See the class."""
        pool = state.batches.pool
        for batch in state.batches.idle():
            pool.extend(batch.members)
            batch.members.clear()
        super().plan(state, now)

    def decode_first(self, state: PipelineState, batch: MicroBatch, most: int) -> None:
        """Keep so many members, the first ones, for the batch's next step; the others stay in the pool."""
        state.batches.pool.extend(batch.members[most:])
        del batch.members[most:]
        state.make_room(batch)
