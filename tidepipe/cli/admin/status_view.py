"""How a cluster's status looks on a terminal, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum

from rich.console import Console
from rich.table import Table

from tidepipe.cli.admin.cache_view import reuse_words
from tidepipe.cli.admin.table import Column, named, print_table
from tidepipe.client.status import ClusterStatus, InstanceStatus, StageStatus

_MIB = 2**20
COLUMNS = (
    Column("stage"),
    Column("address"),
    Column("layers", 1),
    Column("device", 2),
    Column("dtype", 5),
    Column("prefill", 4, right=True),
    Column("decode", 4, right=True),
    Column("memory", 3, right=True),
)


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
        f"router [bold]{named(status.router_id)}[/], up {_duration(status.uptime_s)}: "
        f"{status.queued} queued, {status.running} running (of {status.max_requests}), "
        f"{status.finished} finished, {status.failed} failed, {status.shed} shed",
        highlight=False,
    )
    console.print(_predictor_line(status), highlight=False)
    if not status.instances:
        console.print("no instances", style="yellow")
    several = len({instance.model for instance in status.instances}) > 1
    for instance in status.instances:
        _print_instance(console, instance, several=several)
    for warning in status.warnings:
        console.print(named(warning), style="yellow", highlight=False)
    for reason in status.slow_because:
        console.print(
            f"several times slower than it could be: {named(reason)}", style="yellow", highlight=False
        )


def _predictor_line(status: ClusterStatus) -> str:
    predictor = status.predictor
    if predictor is None:
        return f"predictor {named(status.predictor_address) or '-'}: no answer; fallback estimates are used"
    return (
        f"predictor {named(status.predictor_address)}: {named(predictor.model_version)}, "
        f"{predictor.predicted} predictions, {predictor.observed} answers seen"
    )


def _print_instance(console: Console, instance: InstanceStatus, *, several: bool) -> None:
    """several: models, so that it is said which one it serves."""
    status = instance.status
    where = f"{named(instance.instance_id)}[/] at {named(instance.controller_address)}"
    if several:
        where += f" with {named(instance.model)}"
    console.print(f"\n[bold]{where}: {_state(instance)}")
    if status is None:
        return
    facts = Table.grid(padding=(0, 2))
    if status.serving and status.detail:
        facts.add_row("  is", named(status.detail))
    facts.add_row(
        "  phase", f"{status.phase.value} for {_duration(status.phase_age_s)}: {named(status.phase_reason)}"
    )
    facts.add_row("  sequences", f"{status.running} running, {status.waiting} waiting")
    if status.kv_blocks_total:
        facts.add_row("  decode batches", " + ".join(map(str, status.batch_sizes)) or "none")
        used = status.kv_blocks_total - status.kv_blocks_free
        facts.add_row(
            "  KV blocks", f"{used} of {status.kv_blocks_total} in use, {status.block_size} tokens each"
        )
    if status.reuse is not None:
        facts.add_row("  prefix reuse", reuse_words(status.reuse))
    facts.add_row(
        "  since start",
        f"{status.finished} finished, {status.phase_switches} phase switches, "
        f"{status.preemptions} preemptions, {status.steals} steals ({named(status.policy)})",
    )
    console.print(facts, highlight=False)
    if status.stages:
        print_table(console, COLUMNS, [_stage(stage) for stage in status.stages])


def _state(instance: InstanceStatus) -> str:
    status = instance.status
    if status is None:
        return f"[red]{named(instance.error) or 'no answer'}[/]"
    if not status.serving:
        return f"[red]not serving[/], {named(status.detail)}"
    if not instance.connected:
        return "[red]not connected[/]"
    return "[yellow]draining[/]" if instance.draining else "[green]serving[/]"


def _stage(stage: StageStatus) -> tuple[str, ...]:
    silent = "" if stage.alive else " [red]silent[/]"
    return (
        str(stage.index),
        named(stage.address) + silent,
        f"{stage.layer_begin}-{stage.layer_end - 1}",
        named(stage.device),
        named(stage.dtype),
        f"{stage.prefill_busy_s:.1f} s",
        f"{stage.decode_busy_s:.1f} s",
        f"{stage.rss_bytes / _MIB:.0f} MiB",
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, _ = divmod(int(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
