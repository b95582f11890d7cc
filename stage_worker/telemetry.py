"""The stage worker's metrics (docs/reference/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, Metric

from stage_worker.api.servicer import StageServicer
from stage_worker.epoch import PhaseAccount
from tidepipe_common.telemetry.telemetry import Telemetry, gauge, total
from tidepipe_common.types.plan import Phase

PHASES = (Phase.PREFILL, Phase.DECODE, Phase.MIXED)


def export_metrics(telemetry: Telemetry, stage: StageServicer) -> None:
    """Add the worker's metrics to its registry."""
    telemetry.at_scrape(lambda: _metrics(stage))


def _metrics(stage: StageServicer) -> Iterable[Metric]:
    def by_phase(name: str, text: str, value: Callable[[PhaseAccount], float]) -> Metric:
        family = CounterMetricFamily(name, text, labels=["phase"])
        for phase in PHASES:
            family.add_metric([phase.value], value(stage.account.phases[phase]))
        return family

    yield by_phase("tidepipe_stage_steps", "Steps computed.", lambda one: one.steps)
    yield by_phase(
        "tidepipe_stage_tokens", "Tokens computed, recomputed ones included.", lambda one: one.tokens
    )
    yield by_phase("tidepipe_stage_busy_seconds", "Time spent computing.", lambda one: one.busy_s)
    yield by_phase(
        "tidepipe_stage_bubble_seconds",
        "Idle before a step whose plan was here: waiting for the stage before.",
        lambda one: one.bubble_s,
    )
    yield by_phase(
        "tidepipe_stage_plan_wait_seconds",
        "Idle before a step without its plan: no work, or all of it in flight elsewhere.",
        lambda one: one.plan_wait_s,
    )
    account = stage.account
    yield total(
        "tidepipe_stage_activation_bytes", "Activations handed to the next stage.", account.activation_bytes
    )
    yield total("tidepipe_stage_failures", "Epochs that ended with a failure here.", account.failures)
    _, running_s = stage.running
    yield gauge("tidepipe_stage_running_step_seconds", "Age of the step that is being computed.", running_s)
    yield gauge(
        "tidepipe_stage_epoch", "Newest epoch that this worker was configured for.", stage.newest_epoch
    )
    yield gauge(
        "tidepipe_stage_slow",
        "1 if it computes several times slower than it could (`tidepipe admin status` says why).",
        int(stage.slow),
    )
    executor = stage.executor
    yield gauge("tidepipe_stage_kv_blocks", "KV blocks of the pool.", executor.kv_blocks if executor else 0)
    yield gauge("tidepipe_stage_kv_bytes", "Memory of the KV pool.", executor.kv_bytes if executor else 0)
    yield gauge(
        "tidepipe_stage_weight_bytes", "Memory of the weights.", executor.weight_bytes if executor else 0
    )
