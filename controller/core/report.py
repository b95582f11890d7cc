"""What routing needs to know of an instance, from its scheduler. Ages and durations, no times."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

from common.latency.model import StepCost
from common.latency.work import chunk_pairs
from common.plan import Phase
from controller.core.promise import LATE_SHARE, PROMISED
from controller.core.scheduler import Scheduler
from controller.core.sequence import Sequence, State

LOW_SHARE = 0.1
AMPLE_S = 3600.0
"""Slack of a sequence that has not begun to decode, where decoding is as fast as promised."""
LEAST_DECODING = 0.05
"""Share of its time that an instance is taken to decode at least, however many prompts came lately."""
STEP_SIZES = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Tokens for which step times are told."""


@dataclass(slots=True)
class PrefillWork:
    """Prompt tokens to compute, and the query-key pairs of their attention."""

    tokens: int = 0
    pairs: float = 0.0

    def add(self, first: int, end: int) -> None:
        """Positions first .. end - 1 of one sequence."""
        self.tokens += end - first
        self.pairs += chunk_pairs(first, end - first)


@dataclass(frozen=True, slots=True)
class SlackReport:
    """Saved TPOT (EcoServe, Algorithm 1) of the sequences that decode and have a target, seconds.

    low_s: 10th percentile. low_latest_s: 5th percentile of how long decoding may yet pause so that a
    sequence still meets its target at its expected end; those that do not decode yet count as well.
    """

    count: int
    mean_s: float
    low_s: float
    low_latest_s: float


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What steps cost at one stage; see StepCosts in controller.proto."""

    stages: int
    step_tokens: int
    linear_tokens: tuple[int, ...]
    linear_s: tuple[float, ...]
    pair_s: float
    transfer_token_s: float


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """One look at an instance; see InstanceReport in controller.proto."""

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


def instance_report(scheduler: Scheduler, cost: StepCost, now: float) -> InstanceReport:
    """How the instance stands. Takes a look at each sequence."""
    state = scheduler.state
    window, left = PrefillWork(), PrefillWork()
    due: list[float] = []
    saved: list[tuple[float, float]] = []
    idle: list[float] = []
    tokens = promised = 0
    decode_s = _round_s(scheduler, cost)
    # Prompts that were computed since the present prefill window began belong to it.
    window_began = state.phase_since if state.phase in (Phase.PREFILL, Phase.MIXED) else now
    for sequence in scheduler.sequences.values():
        length = sequence.length
        tokens += length
        if sequence.state is State.DECODE:
            first = sequence.first_token_at
            if first is not None and first > window_began and state.phase is Phase.PREFILL:
                window.add(0, len(sequence.prompt))
            elif sequence.tpot_s is not None and first is not None:
                saved.append(_saved(sequence, first, sequence.tpot_s, decode_s, now))
            continue
        if sequence.tpot_s is not None:
            # It has no time to lose yet, but must not find the instance too slow.
            idle.append(AMPLE_S if decode_s <= PROMISED * sequence.tpot_s else -AMPLE_S)
        window.add(0, length)
        left.add(sequence.planned, length)
        if sequence.state is State.WAITING:
            promised += length + 1
        if sequence.first_token_due is not None:
            due.append(sequence.first_token_due)
    ledger = state.ledger
    return InstanceReport(
        phase=state.phase,
        phase_age_s=now - state.phase_since if state.phase_since else 0.0,
        sequences=len(scheduler.sequences),
        tokens=tokens,
        kv_total=ledger.capacity_tokens,
        kv_free=max(0, ledger.free * ledger.block_size - promised),
        kv_peak=int(state.gate.forecast.peak_tokens()) + promised,
        window=window,
        left=left,
        window_left_s=min(due) - now if due else None,
        slack=_slack(saved, idle) if saved or idle else None,
        policy=scheduler.policy.name,
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
    )


def _round_s(scheduler: Scheduler, cost: StepCost) -> float:
    """A token for each sequence that is here, also those that do not decode yet: they soon will.

    Prompts go on taking the share of the time that they took lately.
    """
    rows = len(scheduler.sequences)
    if not rows:
        return 0.0
    state = scheduler.state
    stages = max(1, state.stages)
    context = state.ledger.used * state.ledger.block_size
    batch, most = -(-rows // stages), scheduler.config.prefill_tokens
    decode_s = cost.linear_s(batch)
    ridden = max(1, most - batch)
    riding_s = max(0.0, cost.linear_s(batch + ridden) - decode_s) / ridden
    share = state.prompt_pace.share(cost.linear_s(most) / most, riding_s)
    return (stages * decode_s + cost.attention_s(context, 0.0)) / max(LEAST_DECODING, 1.0 - share)


def _saved(
    sequence: Sequence, first: float, tpot_s: float, decode_s: float, now: float
) -> tuple[float, float]:
    """Saved TPOT now, and how long decoding may pause yet for the target to be met at the expected end."""
    produced = len(sequence.output) - sequence.given
    saved = produced * tpot_s - (now - first)
    expected = sequence.predicted_p50
    remaining = max(0.0, (expected or 0.0) - len(sequence.output))
    remaining = min(remaining, sequence.max_tokens - len(sequence.output))
    kept = (1.0 - PROMISED) * produced * tpot_s
    return saved, saved - kept + remaining * (PROMISED * tpot_s - decode_s)


def _slack(saved: Many[tuple[float, float]], idle: Many[float]) -> SlackReport:
    low_latest_s = _low([*(latest for _, latest in saved), *idle], LATE_SHARE)
    if not saved:
        return SlackReport(0, AMPLE_S, AMPLE_S, low_latest_s)
    return SlackReport(
        count=len(saved),
        mean_s=sum(now for now, _ in saved) / len(saved),
        low_s=_low([now for now, _ in saved]),
        low_latest_s=low_latest_s,
    )


def _low(values: list[float], share: float = LOW_SHARE) -> float:
    return sorted(values)[int(share * len(values))]
