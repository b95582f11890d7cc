"""`tidepipe plan`: the cheapest cluster that holds latency targets at a rate, and what starts it."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidepipe.cli.exit_codes import SOME_FAILED, SUCCESS
from tidepipe.cli.options import (
    Arrivals,
    AsJson,
    Attainment,
    DispatchMs,
    MaxTotal,
    MeasuredProfile,
    NetworkRate,
    Noise,
    PrefixCaching,
    WorkloadSource,
    refuse_given,
    reuses,
)
from tidepipe.cli.plan_start import MODEL, Deployment, commands, compose
from tidepipe_common.errors import ConfigError
from tidepipe_common.text.text import on_terminal

if TYPE_CHECKING:
    from controller.scheduler.policies.catalog import Knobs
    from simulator.layouts import Fleet, Layout
    from simulator.offline_plan import Bench, OfflinePlan
    from simulator.planner import Cluster, Plan
    from workloads.mixes import Workload

MOST_RATE = 1000.0
"""Requests/s; beyond it there are several clusters, each with a part of the load."""
_LEAST_SECONDS, _OF_TTFT = 60.0, 12.0
"""A run is so long, or so many times the TTFT target, so that a queue that grows is seen."""
_OF_TARGETS = ("ttft_ms", "tpot_ms", "rate", "attainment", "arrivals", "seconds", "plot", "write")
"""Parameters that ask for, or show, what is served within targets."""
_FLEET = re.compile(r"([A-Za-z0-9_-]+):([1-9][0-9]{0,5})x([1-9][0-9]?)", re.ASCII)


def plan(
    context: typer.Context,
    model_shape: Annotated[
        str,
        typer.Option("--model-shape", metavar="NAME|FILE", help="Such as codellama-34b, or a config.json."),
    ],
    hardware: Annotated[
        str,
        typer.Option(
            "--hardware",
            metavar="NAME:NODESxGPUS",
            help="What there is at most, such as L20:8x8; one node: L20:1x4.",
        ),
    ],
    workload: WorkloadSource,
    ttft_ms: Annotated[
        float | None, typer.Option("--ttft-ms", help="Target: first token, ms after arrival.")
    ] = None,
    tpot_ms: Annotated[
        float | None, typer.Option("--tpot-ms", help="Target: ms per further token, on average.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, max=MOST_RATE, help="Requests per second to be held.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="No targets: what finishes the workload soonest on all devices?")
    ] = False,
    attainment: Attainment = 0.9,
    arrivals: Arrivals = "poisson",
    profile: MeasuredProfile = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="NAME,..",
            help="To search. Default: those that serve best; all: baselines, too.",
        ),
    ] = "",
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="Offline: draw so many. Default: all.")
    ] = None,
    scan: Annotated[bool, typer.Option("--scan", help="Offline: try each baseline's knobs.")] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds", min=1, help="Length of each run. Default: 60, or 12 times the TTFT target."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of arrivals and drawing.")] = 0,
    noise: Noise = 0.3,
    prefix_caching: PrefixCaching = "on",
    max_total: MaxTotal = None,
    network_gb_s: NetworkRate = None,
    dispatch_ms: DispatchMs = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, max=256, help="Processes. Default: one for each core.")
    ] = None,
    budget_s: Annotated[
        float,
        typer.Option("--budget-s", min=1, help="Seconds that it may take; what was found by then is shown."),
    ] = 300.0,
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="In what starts it: the model's folder or name.")
    ] = MODEL,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="DIR", help="Draw goodput over devices.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Write a compose file, for one machine.")
    ] = None,
) -> None:
    """Find the cheapest cluster that holds latency targets at a rate, and say what starts it.

    Cheapest: of the fewest devices, then with the most to spare. Searched are stages, tensor parallelism,
    instances, policies and their settings, in virtual time; the winner is confirmed by the controllers' own
    scheduler. Exit code 1: nothing holds the rate; what bears most is shown.

    Example: `tidepipe plan --model-shape llama-30b --hardware L20:8x8 --workload sharegpt-like --ttft-ms 5000
    --tpot-ms 100 --rate 8`
    """
    # Late, so that `tidepipe --help` stays quick.
    from simulator.layouts import Fleet
    from simulator.offline_plan import Bench
    from tidepipe_common.latency.dispatch import dispatch_seconds
    from tidepipe_common.latency.files import read_shape
    from tidepipe_common.latency.hardware import hardware as find_hardware
    from tidepipe_common.latency.profile_file import read_profile
    from workloads.files import open_workload

    name, nodes, gpus = parse_fleet(hardware)
    shape = read_shape(model_shape)
    fleet = Fleet(
        shape, find_hardware(name), nodes, gpus, read_profile(profile) if profile else None,
        network_gb_s or 0.0, max_total or 0, reuses(prefix_caching), dispatch_seconds(dispatch_ms),
    )  # fmt: skip
    longest = min(max_total or shape.context_length, shape.context_length)
    load = open_workload(workload, requests if offline else None, seed).within(longest, longest)
    processes = jobs or len(os.sched_getaffinity(0))
    deadline = time.monotonic() + budget_s
    start = Deployment(
        1, 1, 1, gpus, "", {}, model=model, gpu=fleet.hardware.name != "cpu", reuse=fleet.prefix_caching
    )
    if offline:
        refuse_given(context, _OF_TARGETS, "is not for --offline, which has no targets: leave it out")
        if requests is not None:
            load = load.sample(requests, seed)
        names = _offline_names(policy)
        bench = Bench(fleet, load.at_once(), noise, seed, scan)
        _offline(bench, names, start, processes, deadline, as_json=as_json)
    refuse_given(context, ("requests", "scan"), "is for --offline: leave it out, or the targets")
    if ttft_ms is None or tpot_ms is None or rate is None:
        raise ConfigError("give --ttft-ms, --tpot-ms and --rate, which the cluster must hold; or --offline")

    from router.scheduler.slo import SloTarget
    from simulator.goodput import Question
    from simulator.plan_pictures import draw_frontier
    from simulator.planner import Examiner, Search, make_plan
    from simulator.workers import Workers
    from tidepipe.cli.waiting import Waiting
    from tidepipe_common.regular_files import check_writable
    from workloads.arrivals import parse_arrivals

    slo = SloTarget(ttft_ms / 1000, tpot_ms / 1000)
    length = seconds or max(_LEAST_SECONDS, _OF_TTFT * slo.ttft_s)
    question = Question(
        load, slo, attainment, parse_arrivals(arrivals), seconds=length, seed=seed, noise=noise
    )
    systems = _systems(policy, in_turns=load.in_turns)
    examiner = Examiner(fleet, question, deadline)
    examiner.check(rate)
    # Before the search, so that no answer is lost for want of a place to write to.
    check_writable(plot, folder=True)
    if plot:
        plot.mkdir(parents=True, exist_ok=True)
    if write and (write.is_dir() or not write.parent.is_dir()):
        raise ConfigError(f"--write {write}: give a file in a folder that is there")
    check_writable(write)
    with Waiting("planning") as waiting:
        with Workers(examiner, processes, deadline) as workers:

            def tell(text: str) -> None:
                # What is reckoned here, such as bounds, has its end, too.
                workers.left_s()
                waiting.say(text)

            found = make_plan(Search(fleet, question, rate, systems, workers.ordered, tell))
        if plot:
            draw_frontier(found, plot)
    if found.best is not None:
        start = _deployment(found.best, fleet, start, (ttft_ms, tpot_ms))
    if as_json:
        print(json.dumps(_report(found, fleet, load, start)))
    else:
        from tidepipe.cli.plan_display import show_plan

        show_plan(found, fleet, question, start)
    if not found.holds:
        if write is not None:
            print(f"nothing is written to {on_terminal(str(write))}: nothing holds the rate", file=sys.stderr)
        raise typer.Exit(SOME_FAILED)
    if write is not None:
        write.write_text(compose(start), encoding="utf-8")
    raise typer.Exit(SUCCESS)


def parse_fleet(text: str) -> tuple[str, int, int]:
    """Name, nodes and devices of a node; of L20:8x8."""
    match = _FLEET.fullmatch(text)
    if match is None or int(match[3]) > 64:
        raise ConfigError(
            f"--hardware must be NAME:NODESxGPUS, such as L20:8x8 (64 devices a node at most), got {text!r}"
        )
    return match[1], int(match[2]), int(match[3])


def _systems(policy: str, *, in_turns: bool) -> list[str]:
    from simulator.planner import usual_systems
    from simulator.systems import SYSTEMS

    if not policy:
        return usual_systems()
    names = list(SYSTEMS) if policy == "all" else [part.strip() for part in policy.split(",")]
    for name in names:
        if name not in SYSTEMS:
            raise ConfigError(f"unknown policy {name!r}; known: all, {', '.join(SYSTEMS)}")
    if in_turns:
        apart = [name for name in names if name.startswith("fudg-")]
        if apart and policy != "all":
            raise ConfigError(f"{apart[0]} is not simulated with requests that wait for others' answers")
        names = [name for name in names if name not in apart]
    return list(dict.fromkeys(names))


def _offline_names(policy: str) -> list[str]:
    from simulator.offline_plan import USUAL
    from simulator.setups import POLICIES

    if not policy:
        return list(USUAL)
    names = list(POLICIES) if policy == "all" else [part.strip() for part in policy.split(",")]
    for name in names:
        if name not in POLICIES:
            raise ConfigError(f"unknown policy {name!r}; known: all, {', '.join(POLICIES)}")
    return list(dict.fromkeys(names))


def settings_beside_defaults(policy: str, knobs: Knobs, device: str) -> Mapping[str, object]:
    """Of a live policy: those that differ from what it has anyway."""
    from controller.scheduler.policies.catalog import default_knobs, known_knobs

    usual = default_knobs(policy, device)
    return {name: value for name, value in known_knobs(policy, knobs).items() if usual[name] != value}


def _deployment(
    cluster: Cluster, fleet: Fleet, start: Deployment, targets: tuple[float, float]
) -> Deployment:
    """The cluster as live processes have it."""
    from controller.scheduler.policies.catalog import ROUTING
    from simulator.exact_instance import ExactRules
    from simulator.planner import startable
    from tidepipe_common.settings.defaults import USUAL_ROUTING

    choice = cluster.choice
    start = _sized(start, choice.layout, cluster.instances)
    if not startable(choice.system):
        return replace(start, policy="")
    rules = ExactRules.of(choice.system, choice.knobs)
    settings = settings_beside_defaults(rules.policy, rules.knobs, fleet.hardware.name)
    usual = ROUTING.get(choice.system, USUAL_ROUTING)
    routing = str(choice.knobs.get("routing", usual))
    return replace(
        start,
        policy=rules.policy,
        settings=settings,
        routing="" if routing == usual else routing,
        targets=targets,
    )


def _sized(start: Deployment, layout: Layout, instances: int) -> Deployment:
    return replace(start, stages=layout.stages, tensor=layout.tensor, instances=instances)


def _cluster(one: Cluster) -> dict[str, Any]:
    layout = one.choice.layout
    figures = one.outcome.figures
    return {
        "devices": one.devices,
        "instances": one.instances,
        "stages": layout.stages,
        "tensor": layout.tensor,
        "policy": one.choice.system,
        "settings": dict(one.choice.knobs),
        "rate_rps": one.outcome.rate,
        "attainment": figures.attainment if figures else 0.0,
        "ttft_ms": figures.ttft_ms if figures else None,
        "tpot_ms": figures.tpot_ms if figures else None,
    }


def _report(found: Plan, fleet: Fleet, load: Workload, start: Deployment) -> dict[str, Any]:
    best = found.best
    answer: dict[str, Any] | None = None
    if best is not None:
        seen = found.confirmed or best.outcome
        answer = _cluster(replace(best, outcome=seen))
        answer |= {
            "goodput_rps": found.bears.rate if found.bears else None,
            "margin": found.bears.rate / found.rate if found.bears else None,
            "confirmed": found.confirmed is not None,
            "nodes": start.nodes,
        }
    return {
        "holds": found.holds,
        "rate_rps": found.rate,
        "hardware": {"name": fleet.hardware.name, "nodes": fleet.nodes, "gpus": fleet.gpus},
        "workload": {"name": load.name, "requests": len(load.requests), "dropped": load.dropped},
        "best": answer,
        "as_cheap": [_cluster(one) for one in found.others],
        "frontier": [_cluster(one) for one in found.frontier],
        "tried": [_cluster(one) for one in found.tried],
        "pruned": [
            {
                "stages": one.layout.stages, "tensor": one.layout.tensor, "policy": one.system or None,
                "settings": dict(one.knobs), "why": one.why,
            }
            for one in found.pruned
        ],
        "runs": found.runs,
        "complete": not found.unfinished,
        "unfinished": found.unfinished or None,
        "commands": commands(start) if found.holds and start.policy else None,
    }  # fmt: skip


def _offline(
    bench: Bench, names: list[str], start: Deployment, processes: int, deadline: float, *, as_json: bool
) -> None:
    from simulator.offline_plan import plan_offline
    from simulator.workers import Workers
    from tidepipe.cli.waiting import Waiting

    fleet, load = bench.fleet, bench.workload
    layouts, _ = fleet.layouts(max(one.prompt_tokens + one.output_tokens for one in load.requests))
    ways = bench.ways(names, layouts)
    if not ways:
        raise ConfigError(f"none of {', '.join(names)} runs on {fleet.nodes} x {fleet.gpus} devices")
    with Waiting("planning") as waiting, Workers(bench, processes, deadline) as workers:
        found = plan_offline(ways, workers.ordered, waiting.say)
    if not found.runs:
        raise ConfigError("not one run ended within --budget-s; give more, or fewer --requests")
    way, run = found.runs[0]
    policy = way.policy.removeprefix("tp-")
    settings = settings_beside_defaults(policy, run.knobs, fleet.hardware.name)
    start = replace(_sized(start, way.layout, way.instances), policy=policy, settings=settings)
    if as_json:
        print(json.dumps(_offline_report(found, fleet, load, start)))
    else:
        from tidepipe.cli.plan_display import show_offline

        show_offline(found, fleet, load, start)
    raise typer.Exit(SUCCESS)


def _offline_report(found: OfflinePlan, fleet: Fleet, load: Workload, start: Deployment) -> dict[str, Any]:
    def shown(ways: list[Any]) -> list[dict[str, Any]]:
        return [
            {"policy": way.policy, "instances": way.instances, "stages": way.layout.stages,
             "tensor": way.layout.tensor, "bound_s": way.bound_s}
            for way in ways
        ]  # fmt: skip

    return {
        "hardware": {"name": fleet.hardware.name, "nodes": fleet.nodes, "gpus": fleet.gpus},
        "workload": {"name": load.name, "requests": len(load.requests), "dropped": load.dropped},
        "soonest": found.runs[0][0].policy,
        "tensor_parallel_wins": found.runs[0][0].by_tensors,
        "results": [
            shown([way])[0] | {
                "settings": dict(run.knobs), "makespan_s": run.result.makespan_s,
                "output_tokens_per_s": load.output_tokens / run.result.makespan_s, "busy": run.result.busy,
            }
            for way, run in found.runs
        ],
        "pruned": shown(found.pruned),
        "complete": not found.unfinished,
        "unfinished": shown(found.unfinished),
        "commands": commands(start),
    }  # fmt: skip
