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


def make_policy(name: str, cost: StepCost | None = None) -> Policy | None:
    """The policy of that name, None if there is none.

    cost: what steps take here. Without it `auto` is td-pipe: it cannot compare what it does not know.
    """
    match name:
        case "auto" if cost is not None:
            return TidePolicy(cost)
        case "auto":
            return TemporalPolicy()
        case "td-pipe":
            return TemporalPolicy(stealing=StealByTime(cost) if cost is not None else None)
        case "padg":
            return PadgPolicy(cost)
        case "separate":
            return SeparatePolicy()
        case "hybrid":
            return HybridPolicy()
    return None
