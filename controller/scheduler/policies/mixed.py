"""The base of policies whose micro-batches carry prompts and decode rows alike."""

from __future__ import annotations

from abc import ABC, abstractmethod

from controller.scheduler.actions import Reason
from controller.scheduler.decode import MicroBatch
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState
from tidepipe_common.types.plan import Phase


class MixedSteps(ABC):
    """Every step belongs to a micro-batch; there are no phases, only work and rest."""

    def __init__(self, extra_batches: int = 0) -> None:
        """extra_batches: micro-batches beyond the number of stages. One more hides the way of results to the
        controller and of plans back, none makes the steps larger and so cheaper per token."""
        self._extra = extra_batches

    @property
    def paid_s(self) -> float:
        """What a prompt token cost decoding lately, seconds; 0: as in steps of the largest size."""
        return 0.0

    def microbatches(self, stages: int) -> int:
        """See the constructor."""
        return stages + self._extra

    def place(self, state: PipelineState, sequence: Sequence, batch: MicroBatch | None) -> None:
        """It decodes in the batch that computed its prompt, unless that is no more."""
        if batch is None or batch not in state.batches.batches:
            state.batches.add(sequence)
        else:
            batch.members.append(sequence)

    def plan(self, state: PipelineState, now: float) -> None:
        """Give each batch that is back its next step."""
        if state.phase is Phase.IDLE and state.waiting:
            state.turn(Phase.MIXED, Reason("work arrived", {"waiting": len(state.waiting)}), now)
        for batch in state.batches.idle():
            self.take_back(state, batch)
            self.form(state, batch)
        if not state.running and not state.waiting:
            state.turn(Phase.IDLE, Reason("all done"), now)

    def take_back(self, state: PipelineState, batch: MicroBatch) -> None:
        """Those that sat a step out for lack of a block."""
        if state.batches.pool:
            batch.members.extend(state.batches.pool)
            state.batches.pool.clear()

    @abstractmethod
    def form(self, state: PipelineState, batch: MicroBatch) -> None:
        """Form the next step of a batch and send it, if there is anything to do."""
