"""Reports of instances: protobuf -> what the routing core hears. Ages become times of this host's clock."""

from __future__ import annotations

from bisect import bisect_left

from router.scheduler.instance_report import FOREVER, InstanceReport, Slack
from router.scheduler.prefill import PrefillWork
from tidepipe.v1 import controller_pb2 as pb
from tidepipe_common.codec.plan import phase_from_wire
from tidepipe_common.latency.work import StepWork


class ReportedCost:
    """What steps cost at an instance, as it last said. A StepCost; it changes with every report."""

    def __init__(self, costs: pb.StepCosts) -> None:
        self.update(costs)

    def update(self, costs: pb.StepCosts) -> None:
        """The instance has learned more."""
        # Without points (an instance that knows nothing yet) everything is free until the first step.
        self._tokens = list(costs.linear_tokens) or [1]
        self._seconds = list(costs.linear_s) or [0.0]
        self._pair_s = costs.pair_s
        self._transfer_token_s = costs.transfer_token_s

    def linear_s(self, tokens: int) -> float:
        """Straight lines between the reported sizes; in proportion beyond the last one."""
        sizes, seconds = self._tokens, self._seconds
        place = bisect_left(sizes, tokens)
        if place == len(sizes):
            return seconds[-1] * tokens / sizes[-1]
        if place == 0 or sizes[place] == tokens:
            return seconds[place]
        low, high = sizes[place - 1], sizes[place]
        share = (tokens - low) / (high - low)
        return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        """Of prompts; decode's is part of what was measured."""
        return pairs * self._pair_s

    def step_s(self, work: StepWork) -> float:
        """Both together."""
        return self.linear_s(work.tokens) + self.attention_s(work.kv_tokens, work.pairs)

    def stage_s(self, work: StepWork, layers: int, *, last: bool) -> float:
        """All stages are alike as far as the report says."""
        return self.step_s(work)

    def transfer_s(self, tokens: int) -> float:
        """To the next stage."""
        return tokens * self._transfer_token_s


def status_from_wire(report: pb.InstanceReport, received: float, base: int) -> InstanceReport:
    """received: time when the message came, taken for the time at which it was true.

    base: the ordinal from which the core counts what is handed over.
    """
    return InstanceReport(
        taken=received,
        accepted=max(0, report.accepted - base),
        phase=phase_from_wire(report.phase),
        switched=received - report.phase_age_s,
        sequences=report.sequences,
        tokens=report.tokens,
        kv_free=report.kv_tokens_free,
        kv_total=report.kv_tokens_total,
        kv_peak=report.kv_tokens_peak,
        window=PrefillWork(report.window.tokens, report.window.pairs),
        left=PrefillWork(report.left.tokens, report.left.pairs),
        window_deadline=received + report.window_left_s if report.HasField("window_left_s") else FOREVER,
        slack=_slack(report.slack, received) if report.HasField("slack") else Slack(),
    )


def _slack(slack: pb.Slack, received: float) -> Slack:
    return Slack(
        count=slack.count,
        mean_due=received + slack.mean_s,
        low_due=received + slack.low_s,
        low_latest=received + slack.low_latest_s,
    )
