"""Instances and requests as the tests of the routing core need them."""

from __future__ import annotations

from typing import Any

from router.scheduler.instance_report import InstanceReport, Slack
from router.scheduler.prefill import PrefillTime
from router.scheduler.request import RouteRequest
from router.scheduler.slo import SloTarget
from router.scheduler.view import InstanceFacts, InstanceView
from tidepipe_common.latency.work import StepWork, prompt_work
from tidepipe_common.types.plan import Phase

SLO = SloTarget(1.0, 0.1)


class MillisecondPerToken:
    """A StepCost that can be reckoned by hand."""

    def linear_s(self, tokens: int) -> float:
        return tokens / 1000

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        return 0.0

    def step_s(self, work: StepWork) -> float:
        return self.linear_s(work.tokens)

    def transfer_s(self, tokens: int) -> float:
        return 0.0


def facts(instance_id: str) -> InstanceFacts:
    """Context of 4,096 tokens, 100 sequences."""
    return InstanceFacts(instance_id, PrefillTime(MillisecondPerToken()), 4096, 100)


def status(taken: float = 0.0, accepted: int = 0, **changes: Any) -> InstanceReport:
    """An idle instance with 10,000 tokens of KV memory, unless said otherwise."""
    fields: dict[str, Any] = {
        "phase": Phase.DECODE, "switched": 0.0, "sequences": 0, "tokens": 0,
        "kv_free": 10_000, "kv_total": 10_000,
    }  # fmt: skip
    return InstanceReport(taken=taken, accepted=accepted, **{**fields, **changes})


def view(instance_id: str, **changes: Any) -> InstanceView:
    """An instance that has reported."""
    made = InstanceView(facts(instance_id))
    made.handle(status(**changes))
    return made


def request(name: str, prompt: int = 100, arrived: float = 0.0, **changes: Any) -> RouteRequest:
    """One with the targets SLO."""
    fields: dict[str, Any] = {"max_tokens": 100, "slo": SLO, **changes}
    return RouteRequest(name, prompt, arrived=arrived, **fields)


def slack(count: int, saved: float, now: float = 0.0, low: float | None = None) -> Slack:
    """Mean and, if not said otherwise, lowest saved TPOT of `count` sequences."""
    due = now + saved
    least = due if low is None else now + low
    return Slack(count, due, least, least)


__all__ = ["SLO", "facts", "prompt_work", "request", "slack", "status", "view"]
