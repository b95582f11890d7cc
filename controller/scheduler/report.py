"""The report of an instance to routers, taken from its scheduler: ages and durations, no times."""

from __future__ import annotations

from dataclasses import dataclass

from controller.scheduler.expectation import expected_answer
from controller.scheduler.policies.mixed import MixedSteps
from controller.scheduler.scheduler import Scheduler
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.slack import (
    Decoding,
    SlackReport,
    WindowPrompt,
    decoding_of,
    in_window,
    rounds_beside_prompts,
    slack_of,
    window_left_s,
    window_of,
)
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import PrefillWork, StepCosts
from tidepipe_common.types.plan import Phase

STEP_SIZES = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Tokens for which step times are told."""


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """One look at an instance; see InstanceReport in controller.proto.

    expected_output: tokens that an output is expected to have here, whatever it answers; 0: unknown.
    """

    phase: Phase
    phase_age_s: float
    sequences: int
    tokens: int
    kv_total: int
    kv_free: int
    kv_peak: int
    window: PrefillWork
    left: PrefillWork
    window_left_s: float | None
    slack: SlackReport | None
    policy: str
    expected_output: int = 0


def instance_report(scheduler: Scheduler, cost: StepCost, now: float) -> InstanceReport:
    """How the instance stands. Takes a look at each sequence."""
    state = scheduler.state
    prompts: list[WindowPrompt] = []
    dues: list[float] = []
    decoding: list[Decoding] = []
    idle: list[float] = []
    waiting: list[Sequence] = []
    tokens = promised = coming = blocks = 0
    for sequence in scheduler.sequences.values():
        length = sequence.length
        tokens += length
        # What is pinned for others nobody here reads.
        blocks += len(sequence.blocks)
        if sequence.state is State.DECODE:
            # Prompts that were computed since the present prefill window began belong to it.
            first = sequence.first_token_at
            if first is not None and in_window(first, state.phase, state.phase_since):
                whole = len(sequence.prompt)
                prompts.append(WindowPrompt(min(sequence.begins_at, whole), whole, whole))
            elif (one := decoding_of(sequence)) is not None:
                decoding.append(one)
            continue
        if sequence.state is State.FETCHED:
            # It comes with its KV blocks; those that wait for memory were promised it.
            coming += 0 if sequence.blocks else length + 1
            continue
        if sequence.tpot_s is not None:
            idle.append(sequence.tpot_s)
        if sequence.state is State.WAITING:
            found = sequence.expected_cached
            prompts.append(WindowPrompt(found, found, length))
            promised += length + 1 - found
            waiting.append(sequence)
        else:
            prompts.append(WindowPrompt(sequence.begins_at, sequence.planned, length))
        if sequence.first_token_due is not None:
            dues.append(sequence.first_token_due)
    window, left = window_of(prompts)
    allocator, mixed = state.allocator, scheduler.policy
    round_s, lost = rounds_beside_prompts(
        cost,
        state.prompt_pace,
        here=len(scheduler.sequences),
        decoding=len(state.batches),
        context=blocks * allocator.block_size,
        stages=state.stages,
        step_tokens=scheduler.config.prefill_tokens,
        paid_s=mixed.paid_s if isinstance(mixed, MixedSteps) else 0.0,
        rides=isinstance(mixed, MixedSteps),
        dispatch_s=state.dispatch.seconds,
    )
    return InstanceReport(
        phase=state.phase,
        phase_age_s=now - state.phase_since if state.phase_since else 0.0,
        sequences=len(scheduler.sequences),
        tokens=tokens,
        kv_total=allocator.capacity_tokens,
        kv_free=max(0, allocator.free * allocator.block_size - promised - coming),
        kv_peak=int(state.admission.peak_with(waiting, state.seen.belief)) + coming,
        window=window,
        left=left,
        window_left_s=window_left_s(dues, now),
        slack=slack_of(decoding, idle, round_s, now, lost),
        policy=scheduler.policy.name,
        expected_output=expected_answer(
            state.seen.belief,
            [one.predicted_p50 for one in scheduler.sequences.values() if one.predicted_p50 is not None],
        ),
    )


def step_costs(scheduler: Scheduler, cost: StepCost) -> StepCosts:
    """What steps cost here, as far as `cost` knows."""
    million = 1_000_000
    return StepCosts(
        stages=scheduler.state.stages,
        step_tokens=scheduler.config.prefill_tokens,
        linear_tokens=STEP_SIZES,
        linear_s=tuple(cost.linear_s(size) for size in STEP_SIZES),
        pair_s=cost.attention_s(0, million) / million,
        transfer_token_s=cost.transfer_s(million) / million,
        kv_token_s=cost.attention_s(million, 0.0) / million,
    )
