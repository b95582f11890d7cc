"""How a cluster's status looks on a terminal, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum

from rich.console import Console
from rich.table import Table

from tidepipe.client.status import ClusterStatus, InstanceStatus, PipelineStatus, StageStatus

_MIB = 2**20


def status_json(status: ClusterStatus) -> str:
    """One JSON object; field names as in `tidepipe.ClusterStatus`."""

    def plain(value: object) -> object:
        if isinstance(value, Enum):
            return value.value
        raise TypeError(f"{type(value).__name__} has no JSON form")

    return json.dumps(dataclasses.asdict(status), default=plain)


def print_status(status: ClusterStatus) -> None:
    """Tables on stdout."""
    console = Console()
    console.print(
        f"router [bold]{status.router_id}[/], up {_duration(status.uptime_s)}: "
        f"{status.queued} queued, {status.running} running (of {status.max_requests}), "
        f"{status.finished} finished, {status.failed} failed",
        highlight=False,
    )
    console.print(_predictor_line(status), highlight=False)
    if not status.instances:
        console.print("no instances", style="yellow")
        return
    console.print(_instances(status))
    stages = Table(title="stages", title_justify="left")
    for name in ("instance", "stage", "address", "layers", "device", "prefill", "decode", "memory", ""):
        stages.add_column(name, justify="right" if name in ("prefill", "decode", "memory") else "left")
    for instance in status.instances:
        for stage in instance.status.stages if instance.status else ():
            stages.add_row(*_stage(instance, stage))
    console.print(stages)


def _predictor_line(status: ClusterStatus) -> str:
    predictor = status.predictor
    if predictor is None:
        return f"predictor {status.predictor_address or '-'}: no answer; fallback estimates are used"
    return (
        f"predictor {status.predictor_address}: {predictor.model_version}, "
        f"{predictor.predicted} predictions, {predictor.observed} answers seen"
    )


def _instances(status: ClusterStatus) -> Table:
    table = Table(title="instances", title_justify="left")
    for name in ("instance", "state", "phase", "because", "sequences", "batches", "KV blocks", "since start"):
        table.add_column(name)
    for instance in status.instances:
        pipeline = instance.status
        if pipeline is None:
            table.add_row(instance.instance_id, f"[red]{instance.error or 'no answer'}[/]")
            continue
        table.add_row(
            instance.instance_id,
            _state(instance, pipeline),
            f"{pipeline.phase.value} {_duration(pipeline.phase_age_s)}",
            pipeline.phase_reason,
            f"{pipeline.running} running\n{pipeline.waiting} waiting",
            " ".join(map(str, pipeline.batch_sizes)) or "-",
            f"{pipeline.kv_blocks_total - pipeline.kv_blocks_free} of {pipeline.kv_blocks_total}\n"
            f"x {pipeline.block_size} tokens",
            f"{pipeline.finished} finished, {pipeline.phase_switches} switches\n"
            f"{pipeline.preemptions} preemptions, {pipeline.steals} steals",
        )
    return table


def _state(instance: InstanceStatus, pipeline: PipelineStatus) -> str:
    if not pipeline.serving:
        return f"[red]not serving[/]\n{pipeline.detail}"
    if not instance.connected:
        return "[red]not connected[/]"
    return "[yellow]draining[/]" if instance.draining else "[green]serving[/]"


def _stage(instance: InstanceStatus, stage: StageStatus) -> tuple[str, ...]:
    return (
        instance.instance_id,
        str(stage.index),
        stage.address,
        f"{stage.layer_begin}-{stage.layer_end - 1}",
        f"{stage.device} {stage.dtype}",
        f"{stage.prefill_busy_s:.1f} s",
        f"{stage.decode_busy_s:.1f} s",
        f"{stage.rss_bytes / _MIB:.0f} MiB",
        "" if stage.alive else "[red]does not answer[/]",
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, _ = divmod(int(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
