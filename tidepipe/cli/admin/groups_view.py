"""How macro instances and scaling look on a terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

SHOWN_NOTES = 5


def print_groups(groups: dict[str, Any]) -> None:
    """One table per macro instance."""
    console = Console()
    console.print(
        f"routing [bold]{groups['routing']}[/], {groups['pending']} requests wait; macro instances of "
        f"{groups['macro_min']} to {groups['macro_max']}",
        highlight=False,
    )
    for macro in groups["macros"]:
        console.print(f"\n[bold]{macro['macro_id']}[/]", highlight=False)
        table = Table("instance", "state", "phase", box=SIMPLE, padding=(0, 1))
        for name in ("seqs", "to prefill", "slack", "free KV", "report"):
            table.add_column(name, justify="right")
        table.add_column("policy")
        for member in macro["members"]:
            table.add_row(*_member(member))
        console.print(table)
    if not groups["macros"]:
        console.print("no instances", style="yellow")
    print_scaling(groups["scaling"], console)


def print_scaling(scaling: dict[str, Any], console: Console | None = None) -> None:
    """What scaling does, and did."""
    console = console or Console()
    how = "automatic" if scaling["automatic"] else "by hand"
    if not scaling["provisioner"]:
        how += ", no provisioner"
    starting, stopping = len(scaling["starting"]), ", ".join(scaling["stopping"]) or "none"
    console.print(f"scaling {how}; starting: {starting}; leaving: {stopping}", highlight=False)
    for note in scaling["notes"][-SHOWN_NOTES:]:
        console.print(f"  {note['age_s']:.0f} s ago: {note['text']}", highlight=False)


def _member(member: dict[str, Any]) -> tuple[str, ...]:
    state = "draining" if member["draining"] else "ready" if member["ready"] else "silent"
    used = member["kv_tokens_free"] / max(1, member["kv_tokens_total"])
    slack = member.get("slack_s")
    age = member["report_age_s"]
    return (
        member["instance_id"],
        state,
        member["phase"],
        str(member["sequences"]),
        f"{member['left_s']:.2f} s",
        "-" if slack is None else f"{slack:.2f} s",
        f"{used:.0%}",
        "-" if age < 0 else f"{1000 * age:.0f} ms",
        member["policy"],
    )
