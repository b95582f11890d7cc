"""`tidepipe sim`: what a cluster would do, in virtual time, with the scheduler that runs live."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.options import (
    AsJson,
    DispatchMs,
    MaxTotal,
    MeasuredProfile,
    PrefixCaching,
    SheetHardware,
    WorkloadSource,
    reuses,
)
from tidepipe.cli.sim_journal import journal
from tidepipe.cli.sim_online import online

if TYPE_CHECKING:
    from simulator.bound import Bound
    from simulator.offline import OfflineRun, PipelineSpec
    from workloads.mixes import Workload

sim_app = typer.Typer(help="Simulate a cluster before buying it.", no_args_is_help=True)
sim_app.command("journal")(journal)


@sim_app.callback()
def _sim() -> None:
    """Simulate a cluster before buying it."""


sim_app.command("online")(online)


@sim_app.command("offline")
def offline(
    model_shape: Annotated[
        str, typer.Option("--model-shape", metavar="NAME|FILE", help="Such as llama2-13b, or a config.json.")
    ],
    hardware: SheetHardware,
    stages: Annotated[int, typer.Option("--stages", min=1, max=64, help="Devices, one stage each.")],
    workload: WorkloadSource,
    profile: MeasuredProfile = None,
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="Draw so many. Default: all, in their order.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of drawing and of noisy predictions.")] = 0,
    policy: Annotated[
        str, typer.Option("--policy", metavar="all|NAME,..", help="Policies to compare.")
    ] = "all",
    predictor: Annotated[
        str,
        typer.Option(
            "--predictor",
            metavar="P",
            help="Of output lengths: oracle, none, noise:X, or a trained model's DIR.",
        ),
    ] = "oracle",
    prefix_caching: PrefixCaching = "on",
    max_prompt: Annotated[
        int | None, typer.Option("--max-prompt", min=1, help="Leave out longer prompts, tokens.")
    ] = None,
    max_total: MaxTotal = None,
    layer_split: Annotated[
        str, typer.Option("--layer-split", metavar="A,B,..", help="Layers per stage. Default: equal times.")
    ] = "",
    dispatch_ms: DispatchMs = None,
    scan: Annotated[
        bool, typer.Option("--scan", help="Try each baseline's knobs and report its best.")
    ] = False,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="DIR", help="Draw stages, KV memory and batch sizes.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="Chrome trace, for Perfetto."),
    ] = None,
) -> None:
    """All requests are there from the start: which policy finishes soonest, and how far from the bound?

    Example: `tidepipe sim offline --model-shape llama2-13b --hardware L20 --stages 4 --workload
    sharegpt-like --requests 2000`
    """
    # Late, so that `tidepipe --help` stays quick.
    from simulator.offline import PipelineSpec, best_of_scan, run_offline
    from simulator.offline_pictures import draw_run
    from simulator.predictions import predictor as find_predictor
    from simulator.record import Recording
    from simulator.setups import POLICIES
    from tidepipe.cli.waiting import Waiting
    from tidepipe_common.errors import ConfigError
    from tidepipe_common.latency.dispatch import dispatch_seconds
    from tidepipe_common.latency.files import read_shape
    from tidepipe_common.latency.hardware import hardware as find_hardware
    from tidepipe_common.latency.profile_file import read_profile
    from tidepipe_common.regular_files import check_writable
    from tidepipe_common.telemetry.chrome_trace import write_chrome_trace
    from workloads.files import open_workload

    check_writable(plot, folder=True)
    check_writable(trace)
    names = POLICIES if policy == "all" else tuple(part.strip() for part in policy.split(","))
    for name in names:
        if name not in POLICIES:
            raise ConfigError(f"unknown policy {name!r}; known: all, {', '.join(POLICIES)}")
    measured = read_profile(profile) if profile else None
    shape = read_shape(model_shape)
    split = _split(layer_split, shape.layers, stages)
    reuse = reuses(prefix_caching)
    way_s = dispatch_seconds(dispatch_ms)
    spec = PipelineSpec(shape, find_hardware(hardware), stages, measured, max_total or 0, split, reuse, way_s)
    predict = find_predictor(predictor)
    load = open_workload(workload, requests, seed).within(max_prompt or spec.context, spec.context)
    if requests is not None:
        load = load.sample(requests, seed)
    load = load.at_once()
    if Path(predictor).is_dir() and not any(one.text for one in load.requests):
        print("this workload has no texts: predictions rest on the prompts' lengths alone", file=sys.stderr)
    bound = spec.bound(load)
    runs, timelines = [], []
    with Waiting("simulating") as waiting:
        for number, name in enumerate(names, start=1):
            waiting.say(f"simulating {name} ({number} of {len(names)})")
            knobs = best_of_scan(spec, name, load, predict, seed).knobs if scan else None
            recording = Recording() if plot or trace else None
            runs.append(run_offline(spec, name, load, predict, seed, knobs, recording))
            if recording:
                timelines.append(recording.timeline(name))
            if plot and recording:
                for path in draw_run(name, recording, plot):
                    print(f"wrote {path}", file=sys.stderr)
    if trace:
        print(f"wrote {write_chrome_trace(timelines, trace)} steps to {trace}", file=sys.stderr)
    if as_json:
        _print_json(spec, load, runs, bound)
    else:
        _print_table(spec, load, runs, bound)
    raise typer.Exit(SUCCESS)


def _split(text: str, layers: int, stages: int) -> tuple[int, ...]:
    from controller.scheduler.split import given_split
    from tidepipe_common.errors import ConfigError

    if not text:
        return ()
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--layer-split must be numbers such as 16,14; got {text!r}") from None
    given_split(counts, layers, stages)
    return counts


def _result(run: OfflineRun) -> dict[str, Any]:
    result = run.result
    return {
        "policy": run.policy,
        "settings": dict(run.knobs),
        "output_tokens_per_s": result.output_tokens_per_s,
        "total_tokens_per_s": result.total_tokens_per_s,
        "makespan_s": result.makespan_s,
        "busy": result.busy,
        "bubbles": result.bubbles,
        "imbalance": result.imbalance,
        "forecast_error": result.forecast_error,
        "stage_busy": list(result.stage_busy),
        "phase_switches": result.phase_switches,
        "preemptions": result.preemptions,
        "recomputed_tokens": result.recomputed_tokens,
        "cached_tokens": result.cached_tokens,
        "prefix_hit_rate": result.hit_rate,
        "evicted_blocks": result.evicted_blocks,
        "steals": result.steals,
        "steps": result.steps,
        "kv_used_mean": result.kv_used_mean,
    }


def _print_json(spec: PipelineSpec, load: Workload, runs: list[OfflineRun], bound: Bound) -> None:
    import json

    report = {
        "workload": {
            "name": load.name,
            "requests": len(load.requests),
            "dropped": load.dropped,
            "prompt_tokens": load.prompt_tokens,
            "output_tokens": load.output_tokens,
        },
        "prefix_caching": "on" if spec.prefix_caching else "off",
        "devices": spec.devices,
        "hardware": spec.hardware.name,
        "results": [_result(run) for run in runs],
        "bound": bound.output_tokens_per_s,
        "bound_details": {
            "total_tokens_per_s": bound.total_tokens_per_s,
            "makespan_s": bound.makespan_s,
            "tokens_per_step": bound.tokens_per_step,
        },
    }
    print(json.dumps(report))


def _print_table(spec: PipelineSpec, load: Workload, runs: list[OfflineRun], bound: Bound) -> None:
    from rich.console import Console

    from tidepipe.cli.admin.table import Column, named, print_table
    from workloads.mixes import describe

    console = Console()
    console.print(f"{named(load.name)}: {describe(load.requests)}; {spec.devices} x {spec.hardware.name}")
    if load.dropped:
        console.print(f"{load.dropped} requests left out: longer than {spec.context} tokens, or empty")
    # What is left out first on a narrow terminal has the highest number.
    ranks = {
        "tok/s": 0, "of bound": 0, "bubbles": 1, "uneven": 6, "time": 2, "switches": 3, "preempted": 4,
        "steals": 5, "found": 3, "forecast": 7,
    }  # fmt: skip
    columns = [Column("policy"), *(Column(name, rank, right=True) for name, rank in ranks.items())]
    rows = []
    for run in sorted(runs, key=lambda run: -run.result.output_tokens_per_s):
        result = run.result
        rows.append(
            [
                run.policy,
                f"{result.output_tokens_per_s:.0f}",
                f"{result.output_tokens_per_s / bound.output_tokens_per_s:.0%}",
                f"{result.bubbles:.1%}",
                f"{result.imbalance:.1%}",
                f"{result.makespan_s:.0f} s",
                str(result.phase_switches),
                str(result.preemptions),
                str(result.steals),
                f"{result.hit_rate:.1%}",
                "-" if result.forecast_error is None else f"{result.forecast_error:.1%}",
            ]
        )
    print_table(console, columns, rows)
    for run in runs:
        if run.knobs:
            console.print(
                f"{run.policy}: {', '.join(f'{name} {value}' for name, value in run.knobs.items())}"
            )
    console.print(
        "tok/s: output tokens; found: share of the prompts' tokens that was not computed again; "
        "uneven: longest of the steps in the pipeline over their mean, less one; "
        "forecast: mean error of KV memory at the end of decode phases"
    )
    console.print(f"bound of mixed batches limited by memory: {bound.output_tokens_per_s:.0f} output tok/s")
