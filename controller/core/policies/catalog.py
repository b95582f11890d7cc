"""Policies by the names that users choose."""

from __future__ import annotations

from common.latency.model import StepCost
from controller.core.policies.hybrid import HybridPolicy
from controller.core.policies.padg import PadgPolicy
from controller.core.policies.protocol import Policy
from controller.core.policies.separate import SeparatePolicy
from controller.core.policies.temporal import TemporalPolicy
from controller.core.policies.tide import TidePolicy
from controller.core.stealing import StealByTime
from controller.core.victims import LeastLost, Newest, VictimChoice

LIVE_POLICIES = ("auto", "td-pipe", "padg", "separate", "hybrid")


def victims_for(name: str) -> VictimChoice:
    """Who is preempted under the policy of that name.

    With mixed steps nearly every sequence is always in flight, and the newest would hardly ever be idle.
    """
    return LeastLost() if name in ("auto", "separate", "hybrid") else Newest()


def make_policy(name: str, cost: StepCost | None = None, dispatch_s: float = 0.0) -> Policy | None:
    """The policy of that name, None if there is none.

    cost: what steps take here. Without it `auto` is td-pipe: it cannot compare what it does not know.
    dispatch_s: from a step's result to the next plan at the first stage, where that is long beside a step, so
        that all policies have one micro-batch more than stages; 0 where it is short.
    """
    extra = 1 if dispatch_s else 0
    match name:
        case "auto" if cost is not None:
            return TidePolicy(cost, extra_batches=extra, dispatch_s=dispatch_s)
        case "auto":
            return TemporalPolicy()
        case "td-pipe":
            return TemporalPolicy(stealing=StealByTime(cost) if cost is not None else None)
        case "padg":
            return PadgPolicy(cost, extra_batches=extra)
        case "separate":
            return SeparatePolicy()
        case "hybrid":
            return HybridPolicy()
    return None
