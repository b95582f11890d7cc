"""gLLM's token throttling (arXiv 2504.14775), as a baseline: `docs/decisions/050-rivals-as-policies.md`."""

from __future__ import annotations

from dataclasses import dataclass

from controller.scheduler.decode import MicroBatch
from controller.scheduler.policies.regrouped import RegroupedSteps
from controller.scheduler.state import PipelineState
from tidepipe_common.settings.defaults import MAX_STEP_TOKENS


@dataclass(frozen=True, slots=True)
class Throttle:
    """Its settings, in the paper's order (#MaxP, #MinP, #T, KV_thresh, and gLLM's `maxd`).

    most_prompts, least_prompts: prompt tokens of a step. iterations: steps in which those that wait are to be
    computed. kv_reserve: share of the KV memory that no prompt is computed into. most_decoding: rows of a
    step.
    """

    most_prompts: int = 2048
    least_prompts: int = 32
    iterations: int = 8
    kv_reserve: float = 0.05
    most_decoding: int = 512


class GllmPolicy(RegroupedSteps):
    """Each step decodes an equal share, and takes prompts by how many wait and how much KV memory is free."""

    name = "gllm"

    def __init__(self, throttle: Throttle, extra_batches: int = 0) -> None:
        super().__init__(extra_batches)
        self.throttle = throttle
        self._turns = 0

    def form(self, state: PipelineState, batch: MicroBatch) -> None:
        """See the class."""
        self.decode_first(state, batch, self._share(state))
        tokens = self._prompt_tokens(state)
        if not (batch.members or state.steps.in_flight):
            # A prompt has its memory from its admission on: what is left must not keep it waiting.
            tokens = max(tokens, self.throttle.least_prompts)
        chunks = state.take_prompts(min(tokens, MAX_STEP_TOKENS - len(batch.members)))
        if batch.members or chunks:
            state.send(batch, chunks)

    def _share(self, state: PipelineState) -> int:
        """Decode rows of the next step: rounded up and down in turns, so that they add up to all."""
        steps, decoding = len(state.batches.batches), len(state.batches)
        if decoding < steps:
            return 1
        self._turns = (self._turns + 1) % steps
        return min((decoding + self._turns) // steps, self.throttle.most_decoding)

    def _prompt_tokens(self, state: PipelineState) -> int:
        """Prompt tokens of the next step."""
        rules = self.throttle
        free = state.allocator.free / state.allocator.total
        by_memory = round(rules.most_prompts * max(0.0, free - rules.kv_reserve) / (1.0 - rules.kv_reserve))
        if len(state.waiting) + len(state.prefilling) <= 1:
            return by_memory
        enough = rules.most_prompts * rules.iterations
        waiting = sum(sequence.to_compute for sequence in state.prefilling)
        for sequence in state.waiting:
            if waiting >= enough:
                break
            waiting += sequence.to_compute
        return min(by_memory, max(waiting // rules.iterations, rules.least_prompts))
