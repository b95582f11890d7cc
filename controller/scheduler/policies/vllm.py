"""vLLM's own scheduling of a pipeline, as a baseline: `docs/decisions/050-rivals-as-policies.md`.

One line of running sequences, oldest first, and one budget of tokens: each step takes whoever of them is not
in flight, then prompts. Nothing evens the steps out: who met in one stays together.
"""

from __future__ import annotations

from controller.scheduler.decode import MicroBatch
from controller.scheduler.policies.regrouped import RegroupedSteps
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState


class VllmPolicy(RegroupedSteps):
    """Running sequences first, in order of admission, then prompts, until the budget is used up."""

    name = "vllm"

    def __init__(self, token_budget: int, extra_batches: int = 0) -> None:
        super().__init__(extra_batches)
        self.token_budget = token_budget

    def most_decoding(self, state: PipelineState) -> int:
        """Decode rows of a step at most."""
        return self.token_budget

    def form(self, state: PipelineState, batch: MicroBatch) -> None:
        """See the class."""
        batch.members.sort(key=_age)
        preemptions = state.stats.preemptions
        self.decode_first(state, batch, min(self.token_budget, self.most_decoding(state)))
        left = self.token_budget - len(batch.members)
        stalls = not (batch.members or state.prefilling or state.steps.in_flight)
        # Nobody is admitted by a step for whose sake somebody was preempted, unless nothing else can be done.
        admits = stalls or state.stats.preemptions == preemptions
        chunks = state.take_prompts(left) if admits else state.prompts_under_way(left)
        if batch.members or chunks:
            state.send(batch, chunks)


class CappedVllmPolicy(VllmPolicy):
    """The same, but no step decodes more than its share of the sequences (vllm pull request 57433)."""

    name = "vllm-capped"

    def __init__(self, token_budget: int, extra_batches: int = 0, *, cap: int = 0) -> None:
        """cap: decode rows of a step; 0 for an equal share of those that decode now."""
        super().__init__(token_budget, extra_batches)
        self.cap = cap

    def most_decoding(self, state: PipelineState) -> int:
        """See the class."""
        batches = state.batches
        return self.cap or -(-len(batches) // len(batches.batches))


def _age(sequence: Sequence) -> int:
    return sequence.admitted_order
