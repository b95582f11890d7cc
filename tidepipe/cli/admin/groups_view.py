"""How macro instances and scaling look on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from tidepipe.cli.admin.table import Column, named, print_table

SHOWN_NOTES = 5
COLUMNS = (
    Column("instance"),
    Column("state"),
    Column("phase"),
    Column("seqs", 1, right=True),
    Column("to prefill", 4, right=True),
    Column("slack", 3, right=True),
    Column("free KV", 2, right=True),
    Column("report", 6, right=True),
    Column("policy", 5),
)


def print_groups(groups: dict[str, Any]) -> None:
    """One table per macro instance."""
    console = Console()
    console.print(
        f"routing [bold]{named(groups['routing'])}[/], {groups['pending']} requests wait; macro instances of "
        f"{groups['macro_min']} to {groups['macro_max']}",
        highlight=False,
    )
    several = len({macro.get("model", "") for macro in groups["macros"]}) > 1
    for macro in groups["macros"]:
        serves = f" of {named(macro['model'])}" if several else ""
        console.print(f"\n[bold]{named(macro['macro_id'])}[/]{serves}", highlight=False)
        print_table(console, COLUMNS, [_member(member) for member in macro["members"]])
        shares = [member.get("prefill_share", 0.0) for member in macro["members"]]
        if len(set(shares)) > 1:
            for member, share in zip(macro["members"], shares, strict=True):
                why = named(member.get("share_reason", ""))
                console.print(
                    f"  {named(member['instance_id'])}: {share:.0%} prefill, {why}", highlight=False
                )
    if not groups["macros"]:
        console.print("no instances", style="yellow")
    for scaling in (groups["scaling"], *groups.get("scaling_of_others", ())):
        print_scaling(scaling, console, several=several)


def print_scaling(scaling: dict[str, Any], console: Console | None = None, *, several: bool = False) -> None:
    """What scaling does, and did. several: say of which model."""
    console = console or Console()
    how = "automatic" if scaling["automatic"] else "by hand"
    if (wanted := scaling.get("wanted")) is not None:
        how += f", {wanted} wanted"
    if not scaling["provisioner"]:
        how += ", no provisioner"
    starting, stopping = len(scaling["starting"]), ", ".join(map(named, scaling["stopping"])) or "none"
    of = f" of {named(scaling['model'])}" if several else ""
    console.print(f"scaling{of} {how}; starting: {starting}; leaving: {stopping}", highlight=False)
    for note in scaling["notes"][-SHOWN_NOTES:]:
        console.print(f"  {note['age_s']:.0f} s ago: {named(note['text'])}", highlight=False)


def _member(member: dict[str, Any]) -> tuple[str, ...]:
    state = "draining" if member["draining"] else "ready" if member["ready"] else "silent"
    used = member["kv_tokens_free"] / max(1, member["kv_tokens_total"])
    slack = member.get("slack_s")
    age = member["report_age_s"]
    return (
        named(member["instance_id"]),
        state,
        member["phase"],
        str(member["sequences"]),
        f"{member['left_s']:.2f} s",
        "-" if slack is None else f"{slack:.2f} s",
        f"{used:.0%}",
        "-" if age < 0 else f"{1000 * age:.0f} ms",
        named(member["policy"]),
    )
