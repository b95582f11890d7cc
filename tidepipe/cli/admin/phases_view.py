"""How phases look on a terminal, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tidepipe.cli.admin.cache_view import reuse_fields, reuse_words
from tidepipe.cli.admin.table import named
from tidepipe.client.status import ClusterStatus, InstanceStatus, PipelineStatus
from tidepipe_common.text.text import on_one_line
from tidepipe_common.types.plan import Phase

COLOURS = {Phase.PREFILL: "dark_orange", Phase.DECODE: "dodger_blue1", Phase.MIXED: "green3"}
BAR = 20
SHOWN = 5
"""Switches that are listed."""


def phases_json(status: ClusterStatus) -> str:
    """One JSON object."""
    return json.dumps({"instances": [_fields(one) for one in status.instances]})


def _fields(instance: InstanceStatus) -> dict[str, Any]:
    status = instance.status
    if status is None:
        return {"instance_id": instance.instance_id, "error": instance.error}
    total = status.kv_blocks_total
    return {
        "instance_id": instance.instance_id,
        "serving": status.serving,
        "policy": status.policy,
        "phase": status.phase.value,
        "phase_age_s": round(status.phase_age_s, 3),
        "reason": status.phase_reason,
        "phase_switches": status.phase_switches,
        "running": status.running,
        "waiting": status.waiting,
        "batch_sizes": list(status.batch_sizes),
        "kv_blocks": {
            "total": total,
            "used": total - status.kv_blocks_free,
            "forecast_peak": status.kv_blocks_forecast,
            "kept": status.reuse.kept_blocks if status.reuse else 0,
        },
        "prefix_reuse": None if status.reuse is None else reuse_fields(status, status.reuse),
        "hand_overs": None if status.hand_overs is None else asdict(status.hand_overs),
        "steals": status.steals,
        "preemptions": status.preemptions,
        "forecasts": {"scored": status.forecasts_scored, "mean_error_tokens": status.forecast_error_tokens},
        "window_s": round(status.window_s, 3),
        "working_s": round(status.working_s, 3),
        "dispatch": {"seconds": status.dispatch_s, "steps": status.dispatch_steps},
        "stages": [
            {
                "index": stage.index,
                "busy_share": round(stage.busy_share, 4),
                "bubble_share": round(stage.bubble_share, 4),
                "plan_wait_s": round(stage.plan_wait_s, 4),
            }
            for stage in status.stages
        ],
        "recent_switches": [
            {
                "age_s": round(one.age_s, 3),
                "before": one.before.value,
                "after": one.after.value,
                "reason": one.reason,
            }
            for one in status.recent_switches
        ],
    }


def phases_view(status: ClusterStatus) -> RenderableType:
    """A panel per instance."""
    if not status.instances:
        return Text("no instances", style="yellow")
    return Group(*(_panel(one) for one in status.instances))


def _panel(instance: InstanceStatus) -> Panel:
    status = instance.status
    if status is None:
        return Panel(
            Text(on_one_line(instance.error) or "no answer", style="red"), title=named(instance.instance_id)
        )
    colour = COLOURS.get(status.phase, "grey62")
    title = f"{named(instance.instance_id)} ({named(status.policy)})"
    if not status.serving:
        title += f" [red]not serving: {named(status.detail)}[/]"
    parts = (_facts(status, colour), *_switches(status), *_moves(status))
    return Panel(Group(*parts), title=title, border_style=colour)


def _facts(status: PipelineStatus, colour: str) -> Table:
    facts = Table.grid(padding=(0, 2))
    age = f"[bold {colour}]{status.phase.value}[/] for {status.phase_age_s:.1f} s"
    facts.add_row("phase", f"{age}: {named(status.phase_reason)}")
    batches = " + ".join(map(str, status.batch_sizes)) or "none"
    facts.add_row("sequences", f"{status.running} running in batches of {batches}, {status.waiting} waiting")
    for stage in status.stages:
        name = f"stage {stage.index}"
        shares = f"{stage.busy_share:4.0%} busy of {status.window_s:.0f} s, bubbles {stage.bubble_share:.0%}"
        facts.add_row(name, f"{_bar(stage.busy_share)} {shares}")
    if status.dispatch_s:
        by = f"of the last of {status.dispatch_steps} steps" if status.dispatch_steps else "assumed"
        facts.add_row("between steps", f"{status.dispatch_s * 1000:.2f} ms beside computing ({by})")
    total = max(1, status.kv_blocks_total)
    used, peak = (total - status.kv_blocks_free) / total, status.kv_blocks_forecast / total
    facts.add_row("KV memory", f"{_bar(used)} {used:4.0%} in use, {peak:.0%} at the forecast peak")
    if status.reuse is not None:
        facts.add_row("prefix reuse", reuse_words(status.reuse))
    if (moves := status.hand_overs) is not None and (
        moves.handed_over or moves.taken_over or moves.recomputed
    ):
        rate = f"{moves.fetched_bytes / 1e6:.1f} MB fetched, {moves.bytes_per_s / 1e6:.0f} MB/s expected"
        if moves.near_bytes_per_s:
            rate += f", {moves.near_bytes_per_s / 1e6:.0f} MB/s within the node"
        came = f"{moves.taken_over} came with their KV blocks, {moves.recomputed} in vain"
        facts.add_row("hand-over", f"{moves.handed_over} went on elsewhere, {came}; {rate}")
    error = (
        f"off by {status.forecast_error_tokens:.0f} tokens (mean of the last of {status.forecasts_scored})"
        if status.forecasts_scored
        else "not scored yet"
    )
    facts.add_row("forecasts", error)
    facts.add_row(
        "since start",
        f"{status.phase_switches} switches (idle aside), {status.steals} steals, "
        f"{status.preemptions} preemptions",
    )
    return facts


def _bar(share: float) -> str:
    full = round(BAR * min(1.0, max(0.0, share)))
    return f"{'█' * full}[dim]{'░' * (BAR - full)}[/]"


def _switches(status: PipelineStatus) -> list[RenderableType]:
    if not status.recent_switches:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("ago", "switch", "why"):
        table.add_column(column, justify="right" if column == "ago" else "left")
    for one in reversed(status.recent_switches[-SHOWN:]):
        table.add_row(f"{one.age_s:.1f} s", f"{one.before.value} -> {one.after.value}", named(one.reason))
    return [Text(), table]


def _moves(status: PipelineStatus) -> list[RenderableType]:
    """The last sequences that went or came."""
    if status.hand_overs is None or not status.hand_overs.recent:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("ago", "hand-over"):
        table.add_column(column, justify="right" if column == "ago" else "left")
    for one in reversed(status.hand_overs.recent[-SHOWN:]):
        table.add_row(f"{one.age_s:.1f} s", named(one.text))
    return [Text(), table]
