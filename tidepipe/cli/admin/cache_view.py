"""How prefix reuse looks on a terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from tidepipe.cli.admin.table import Column, named, print_table
from tidepipe.client.status import ClusterStatus, InstanceStatus, PipelineStatus, PrefixReuse
from tidepipe_common.errors import NotFoundError

COLUMNS = (
    Column("instance"),
    Column("blocks", 5, right=True),
    Column("in use", 4, right=True),
    Column("kept", 0, right=True),
    Column("findable", 6, right=True),
    Column("hit rate", 0, right=True),
    Column("tokens found", 3, right=True),
    Column("evicted", 2, right=True),
    Column("cleared", 1, right=True),
)
OFF = "off (--prefix-caching off)"

Cleared = Sequence[dict[str, Any]]
"""What became of each instance whose cache was to be cleared."""


def chosen(status: ClusterStatus, instance_id: str) -> tuple[InstanceStatus, ...]:
    """The instance of that name, or all; NotFoundError lists those there are."""
    if not instance_id:
        return status.instances
    found = tuple(one for one in status.instances if one.instance_id == instance_id)
    if not found:
        names = ", ".join(one.instance_id for one in status.instances) or "none"
        raise NotFoundError(f"no instance {instance_id}; there are: {names}")
    return found


def cache_json(instances: Sequence[InstanceStatus], cleared: Cleared | None = None) -> str:
    """One JSON object."""
    outcomes = {one["instance_id"]: one for one in cleared or ()}
    return json.dumps({"instances": [_fields(one, outcomes.get(one.instance_id)) for one in instances]})


def _fields(instance: InstanceStatus, outcome: dict[str, Any] | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"instance_id": instance.instance_id}
    status = instance.status
    if status is None:
        fields["error"] = instance.error
    elif status.reuse is not None:
        fields |= reuse_fields(status, status.reuse)
    if outcome is not None:
        fields["cleared_blocks"] = outcome["blocks"]
        if outcome["error"]:
            fields["error"] = outcome["error"]
    return fields


def reuse_fields(status: PipelineStatus, reuse: PrefixReuse) -> dict[str, Any]:
    """As JSON values; counters since the controller started."""
    return {
        "prefix_caching": reuse.on,
        "block_size": status.block_size,
        "blocks": {
            "total": status.kv_blocks_total,
            "used": status.kv_blocks_total - status.kv_blocks_free,
            "kept": reuse.kept_blocks,
            "findable": reuse.findable_blocks,
        },
        "asked_tokens": reuse.asked_tokens,
        "found_tokens": reuse.found_tokens,
        "found_again_tokens": reuse.found_again_tokens,
        "hit_rate": None if reuse.hit_rate is None else round(reuse.hit_rate, 4),
        "evicted_blocks": reuse.evicted_blocks,
    }


def reuse_words(reuse: PrefixReuse) -> str:
    """In a line."""
    if not reuse.on:
        return OFF
    if reuse.hit_rate is None:
        return f"{reuse.kept_blocks} blocks kept; nothing was asked for yet"
    return (
        f"{reuse.kept_blocks} blocks kept, {reuse.evicted_blocks} evicted; "
        f"{reuse.hit_rate:.1%} of {reuse.asked_tokens} tokens were found"
    )


def print_cache(instances: Sequence[InstanceStatus], cleared: Cleared | None = None) -> None:
    """A table on stdout, and below it what went wrong."""
    console = Console()
    outcomes = {one["instance_id"]: one for one in cleared or ()}
    columns = COLUMNS if cleared is not None else COLUMNS[:-1]
    if not instances:
        console.print("no instances", style="yellow")
        return
    rows = [_row(one, outcomes.get(one.instance_id))[: len(columns)] for one in instances]
    print_table(console, columns, rows)
    for instance in instances:
        for line in _remarks(instance, outcomes.get(instance.instance_id)):
            console.print(f"{named(instance.instance_id)}: {named(line)}", style="yellow", highlight=False)


def _row(instance: InstanceStatus, outcome: dict[str, Any] | None) -> tuple[str, ...]:
    status = instance.status
    gone = "-" if outcome is None or outcome["error"] else str(outcome["blocks"])
    if status is None or status.reuse is None:
        return (named(instance.instance_id), *["-"] * 7, gone)
    reuse = status.reuse
    return (
        named(instance.instance_id),
        str(status.kv_blocks_total),
        str(status.kv_blocks_total - status.kv_blocks_free),
        str(reuse.kept_blocks),
        str(reuse.findable_blocks),
        "-" if reuse.hit_rate is None else f"{reuse.hit_rate:.1%}",
        f"{reuse.found_tokens} of {reuse.asked_tokens}",
        str(reuse.evicted_blocks),
        gone,
    )


def _remarks(instance: InstanceStatus, outcome: dict[str, Any] | None) -> list[str]:
    status, remarks = instance.status, []
    if status is None:
        remarks.append(instance.error or "no answer")
    elif status.reuse is None:
        remarks.append(f"does not say ({status.detail or 'an older release'})")
    elif not status.reuse.on:
        remarks.append(OFF)
    if outcome is not None and outcome["error"]:
        remarks.append(f"not cleared: {outcome['error']}")
    return remarks
