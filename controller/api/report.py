"""An instance's report to routers, as a message."""

from __future__ import annotations

from collections.abc import Sequence

from controller.scheduler.report import InstanceReport
from tidepipe.v1 import controller_pb2 as pb
from tidepipe_common.codec.controller import costs_to_wire, holdings_to_wire
from tidepipe_common.codec.kv_transfer import transfer_to_wire
from tidepipe_common.codec.plan import phase_to_wire
from tidepipe_common.latency.work import PrefillWork, StepCosts
from tidepipe_common.types.holdings import PrefixHoldings
from tidepipe_common.types.kv_transfer import KvTransfer

DEFAULT_INTERVAL_S = 0.1
SHORTEST_S, LONGEST_S = 0.02, 10.0
WAIT_BETWEEN_S = 0.005
"""Events within this time share a report."""


def interval_s(interval_ms: int) -> float:
    """What a watcher asked for, within bounds."""
    if not interval_ms:
        return DEFAULT_INTERVAL_S
    return min(max(interval_ms / 1000, SHORTEST_S), LONGEST_S)


def report_to_wire(
    report: InstanceReport,
    costs: StepCosts,
    holdings: PrefixHoldings | None,
    *,
    incarnation: str,
    serving: bool,
    accepted: int,
    stages_down: bool = False,
    transfer: KvTransfer | None = None,
    barred: Sequence[str] = (),
) -> pb.InstanceReport:
    """Domain to protobuf. holdings: None if blocks are not reused here.

    transfer: of KV blocks that come here; None: none do. barred: where from none do.
    """
    slack = report.slack
    return pb.InstanceReport(
        incarnation=incarnation,
        serving=serving,
        accepted=accepted,
        stages_down=stages_down,
        phase=phase_to_wire(report.phase),
        phase_age_s=report.phase_age_s,
        sequences=report.sequences,
        tokens=report.tokens,
        kv_tokens_total=report.kv_total,
        kv_tokens_free=report.kv_free,
        kv_tokens_peak=report.kv_peak,
        window=_work(report.window),
        left=_work(report.left),
        window_left_s=report.window_left_s,
        slack=None
        if slack is None
        else pb.Slack(
            count=slack.count, mean_s=slack.mean_s, low_s=slack.low_s, low_latest_s=slack.low_latest_s
        ),
        costs=costs_to_wire(costs),
        policy=report.policy,
        expected_output_tokens=report.expected_output,
        holdings=None if holdings is None else holdings_to_wire(holdings),
        kv_transfer=None if transfer is None else transfer_to_wire(transfer, barred),
    )


def _work(work: PrefillWork) -> pb.PrefillWork:
    return pb.PrefillWork(tokens=work.tokens, pairs=work.pairs)
