"""From one policy to another, while steps are in flight."""

from __future__ import annotations

from controller.scheduler.actions import Reason
from controller.scheduler.policies import Policy
from controller.scheduler.policies.mixed import MixedSteps
from controller.scheduler.state import PipelineState
from tidepipe_common.types.plan import Phase


def take_over(state: PipelineState, policy: Policy, microbatches: int, reason: Reason, now: float) -> None:
    """Put the pipeline's state into a form that `policy` goes on from. Nothing is lost or recomputed.

    A policy with phases finds itself in one: it finishes prompts that are under way first. One with mixed
    steps knows no phases, and finds prompts under way in `prefilling` and decoding sequences in batches.
    """
    state.batches.resize(microbatches)
    if state.phase is Phase.IDLE:
        return
    if isinstance(policy, MixedSteps):
        state.turn(Phase.MIXED, reason, now)
    else:
        state.turn(Phase.PREFILL if state.prefilling or state.waiting else Phase.DECODE, reason, now)
