"""`tidepipe sim journal`: replay a live run, and run it again under other policies in virtual time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidepipe.cli.exit_codes import SOME_FAILED, SUCCESS
from tidepipe.cli.options import AsJson, reuses
from tidepipe_common.errors import ConfigError

if TYPE_CHECKING:
    from simulator.record import RunResult
    from simulator.what_if import LiveRun


def journal(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Of `tidepipe up --journal DIR` or `batch --journal DIR`.")
    ],
    policy: Annotated[
        str, typer.Option("--policy", metavar="NAME,..", help="What if? Default: the recorded one.")
    ] = "",
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Step times, if not the recorded ones.")
    ] = None,
    as_profiled: Annotated[
        bool, typer.Option("--as-profiled", help="Steps as fast as the profile says, not as they were.")
    ] = False,
    prefix_caching: Annotated[
        str, typer.Option("--prefix-caching", metavar="on|off", help="What if? Default: as recorded.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Replay a live run's journal and check that each decision is the same; then ask "what if".

    The same arrivals, lengths, predictions and memory are run under each policy in virtual time, with steps
    as fast as they were on the whole (--as-profiled: as the instance's profile says). Exit code 1: the
    replay decided otherwise than the live run.
    """
    # Late, so that `tidepipe --help` stays quick.
    import json

    from simulator.what_if import replay_journal, what_if
    from tidepipe_common.latency.profile_file import read_profile
    from tidepipe_common.settings.defaults import LIVE_POLICIES

    names = [part.strip() for part in policy.split(",") if part.strip()]
    for name in names:
        if name not in LIVE_POLICIES:
            raise ConfigError(f"unknown policy {name!r}; known: {', '.join(LIVE_POLICIES)}")
    live = replay_journal(file)
    spec = live.spec
    if profile is not None:
        spec = replace(spec, profile=read_profile(profile))
    if prefix_caching:
        spec = replace(spec, prefix_caching=reuses(prefix_caching))
    if spec.costs() is None and not (names or prefix_caching):
        results = {}
    else:
        # A given profile is another device's, whose pace that run cannot tell.
        paced = profile is None and not as_profiled
        results = {name: what_if(live, spec.under(name), paced=paced) for name in names or [spec.policy]}
    if as_json:
        simulated = [_fields(name, live, result) for name, result in results.items()]
        print(json.dumps({"live": _live(live), "what_if": simulated}))
    else:
        _print(live, results)
    raise typer.Exit(SOME_FAILED if live.differing else SUCCESS)


def _live(live: LiveRun) -> dict[str, Any]:
    return {
        "policy": live.spec.policy,
        "events": live.events,
        "differing": live.differing,
        "requests": len(live.requests),
        "output_tokens": live.output_tokens,
        "makespan_s": live.makespan_s,
        "output_tokens_per_s": live.output_tokens / live.makespan_s,
        "stage_busy": list(live.stage_busy),
        "phase_switches": live.phase_switches,
        "preemptions": live.preemptions,
        "steals": live.steals,
        "prefix_caching": "on" if live.spec.prefix_caching else "off",
        "cached_tokens": live.cached_tokens,
        "epochs": live.epochs,
        "pace": {phase.value: factor for phase, factor in live.pace.items()},
        "dispatch_s": live.dispatch_s,
        "dispatch_steps": live.dispatch_steps,
    }


def _fields(name: str, live: LiveRun, result: RunResult) -> dict[str, Any]:
    return {
        "policy": name,
        "makespan_s": result.makespan_s,
        "of_live": result.makespan_s / live.makespan_s,
        "output_tokens_per_s": result.output_tokens_per_s,
        "stage_busy": list(result.stage_busy),
        "phase_switches": result.phase_switches,
        "preemptions": result.preemptions,
        "steals": result.steals,
        "cached_tokens": result.cached_tokens,
    }


def _print(live: LiveRun, results: dict[str, RunResult]) -> None:
    from rich.console import Console

    from tidepipe.cli.admin.table import Column, named, print_table

    console = Console()
    if live.differing:
        console.print(
            f"[red]{live.differing} of {live.events} events were decided otherwise[/], "
            f"the first one is event {live.first_difference}"
        )
    else:
        console.print(f"replayed {live.events} events: every decision is the same")
    if live.pace:
        told = ", ".join(f"{phase.value} {factor:.2f}" for phase, factor in live.pace.items())
        by = "" if live.dispatch_steps else " (assumed)"
        beside = f"{live.dispatch_s * 1000:.1f} ms each beside computing{by}"
        console.print(f"steps took, times what the profile says: {told}; and {beside}")
    # What is left out first on a narrow terminal has the highest number.
    ranks = {
        "seconds": 0, "tok/s": 1, "of live": 2, "busy": 4, "switches": 5, "preempted": 6, "steals": 7,
        "found": 3,
    }  # fmt: skip
    columns = [Column("run"), *(Column(name, rank, right=True) for name, rank in ranks.items())]
    rows = [
        (
            named(f"live: {live.spec.policy}"),
            f"{live.makespan_s:.2f}",
            f"{live.output_tokens / live.makespan_s:.0f}",
            "1.00",
            f"{sum(live.stage_busy) / len(live.stage_busy):.0%}",
            str(live.phase_switches),
            str(live.preemptions),
            str(live.steals),
            str(live.cached_tokens),
        )
    ]
    rows += [
        (
            f"virtual: {name}",
            f"{result.makespan_s:.2f}",
            f"{result.output_tokens_per_s:.0f}",
            f"{result.makespan_s / live.makespan_s:.2f}",
            f"{result.busy:.0%}",
            str(result.phase_switches),
            str(result.preemptions),
            str(result.steals),
            str(result.cached_tokens),
        )
        for name, result in results.items()
    ]
    print_table(console, columns, rows)
    console.print(
        "tok/s: output tokens; found: prompt tokens that were not computed again; busy: of the live run the "
        "last stage, else the mean of all",
        style="dim",
    )
    if not results:
        console.print("no costs are known, so nothing can be run again; give --profile FILE")
