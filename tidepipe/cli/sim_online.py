"""`tidepipe sim online`: how many requests per second a cluster serves within latency targets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.options import (
    Arrivals,
    AsJson,
    Attainment,
    DispatchMs,
    KvTransfers,
    MaxTotal,
    MeasuredProfile,
    NetworkRate,
    Noise,
    PrefixCaching,
    SheetHardware,
    WorkloadSource,
    refuse_given,
    reuses,
    transfers,
)

if TYPE_CHECKING:
    from controller.scheduler.policies.catalog import Knobs
    from simulator.cluster_spec import ClusterSpec
    from simulator.goodput import Goodput, Question, Run
    from simulator.job import Job
    from tidepipe.cli.waiting import Waiting


def online(
    context: typer.Context,
    model_shape: Annotated[
        str,
        typer.Option("--model-shape", metavar="NAME|FILE", help="Such as codellama-34b, or a config.json."),
    ],
    hardware: SheetHardware,
    instances: Annotated[int, typer.Option("--instances", min=1, max=256, help="Of the model.")],
    workload: WorkloadSource,
    ttft_ms: Annotated[float, typer.Option("--ttft-ms", help="Target: first token, ms after arrival.")],
    tpot_ms: Annotated[float, typer.Option("--tpot-ms", help="Target: ms per further token, on average.")],
    attainment: Attainment = 0.9,
    arrivals: Arrivals = "poisson",
    tp: Annotated[int, typer.Option("--tp", min=1, max=64, help="Tensor-parallel devices per stage.")] = 1,
    stages: Annotated[int, typer.Option("--stages", min=1, max=64, help="Per instance.")] = 1,
    profile: MeasuredProfile = None,
    policy: Annotated[
        str, typer.Option("--policy", metavar="all|NAME,..", help="Systems or routing policies to compare.")
    ] = "all",
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="Look at this rate, instead of searching.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Length of each run.")] = 120.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of arrivals and drawing.")] = 0,
    noise: Noise = 0.3,
    prefix_caching: PrefixCaching = "on",
    kv_transfer: KvTransfers = "auto",
    max_total: MaxTotal = None,
    network_gb_s: NetworkRate = None,
    dispatch_ms: DispatchMs = None,
    definition: Annotated[
        str,
        typer.Option(
            "--definition", help="ecoserve: the wait for the phase switch is TTFT; classical: TPOT."
        ),
    ] = "ecoserve",
    scan: Annotated[bool, typer.Option("--scan", help="Tune each system, and report its best.")] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Do not confirm by a run with the controllers' own scheduler.")
    ] = False,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="DIR", help="Draw attainment and latencies over the rate."),
    ] = None,
) -> None:
    """Goodput: the rate up to which the wanted share of requests meets both targets.

    Example: `tidepipe sim online --model-shape codellama-34b --hardware L20 --instances 8 --tp 4 --workload
    sharegpt-like --ttft-ms 5000 --tpot-ms 100 --policy padg,hybrid`
    """
    # Late, so that `tidepipe --help` stays quick.
    from router.scheduler.slo import SloTarget
    from simulator.cluster_spec import ClusterSpec
    from simulator.goodput import Question
    from tidepipe.cli.waiting import Waiting
    from tidepipe_common.errors import ConfigError
    from tidepipe_common.latency.dispatch import dispatch_seconds
    from tidepipe_common.latency.files import read_shape
    from tidepipe_common.latency.hardware import hardware as find_hardware
    from tidepipe_common.latency.profile_file import read_profile
    from tidepipe_common.regular_files import check_writable
    from workloads.arrivals import parse_arrivals
    from workloads.files import open_workload

    if rate is not None:
        refuse_given(context, ("scan",), "tunes for the highest rate: leave it out, or --rate")
    check_writable(plot, folder=True)
    if definition not in ("ecoserve", "classical"):
        raise ConfigError(f"unknown definition {definition!r}; known: ecoserve, classical")
    spec = ClusterSpec(
        read_shape(model_shape),
        find_hardware(hardware),
        instances,
        tp,
        stages,
        read_profile(profile) if profile else None,
        network_gb_s or 0.0,
        max_total=max_total or 0,
        prefix_caching=reuses(prefix_caching),
        kv_transfer=transfers(kv_transfer),
        dispatch_s=dispatch_seconds(dispatch_ms),
    )
    kind = parse_arrivals(arrivals)
    load = open_workload(workload, None, seed)
    names = _names(policy, spec, in_turns=load.in_turns)
    question = Question(
        load.within(spec.context, spec.context),
        SloTarget(ttft_ms / 1000, tpot_ms / 1000),
        attainment,
        kind,
        definition == "ecoserve",
        seconds,
        seed=seed,
        noise=noise,
    )
    with Waiting("simulating") as waiting:
        found = []
        for i, name in enumerate(names, start=1):
            words = f"{_label(name)} ({i} of {len(names)})"
            found.append(_answer(name, spec, question, rate, words, waiting, scan=scan, fast=fast))
        if plot:
            waiting.say("drawing")
            _draw(found, spec, question, plot)
    if as_json:
        _print_json(found, spec, question)
    else:
        _print_table(found, spec, question)
    raise typer.Exit(SUCCESS)


def _names(policy: str, spec: ClusterSpec, *, in_turns: bool) -> list[str]:
    """Systems as the simulation calls them; `all` leaves out what cannot be with so few devices.

    in_turns: requests wait for others' answers, which disaggregated systems are not simulated with.
    """
    from simulator.exact_instance import ROLES, is_roles
    from simulator.systems import APART, ENGINES, SYSTEMS, scan
    from tidepipe_common.errors import ConfigError
    from tidepipe_common.settings.defaults import ROUTING_POLICIES

    if policy == "all":
        return [name for name in SYSTEMS if scan(name, spec) and not (in_turns and name.startswith("fudg-"))]
    names = [part.strip() for part in policy.split(",")]
    for i, name in enumerate(names):
        if name in SYSTEMS + APART + ENGINES or is_roles(name):
            if not scan(name, spec):
                raise ConfigError(f"{name} needs room for instances of both roles; add instances")
        elif name in ROUTING_POLICIES:
            names[i] = f"route:{name}"
        else:
            others = (one for one in ROUTING_POLICIES if one not in (*SYSTEMS, *APART, ROLES))
            known = ", ".join((*SYSTEMS, *APART, *ENGINES, ROLES, f"{ROLES}:P", *others))
            raise ConfigError(f"unknown policy {name!r}; known: all, {known}")
    return names


def _answer(
    name: str,
    spec: ClusterSpec,
    question: Question,
    rate: float | None,
    words: str,
    waiting: Waiting,
    *,
    scan: bool,
    fast: bool,
) -> Goodput:
    from simulator.goodput import Goodput, confirmed, goodput, measure, tuned_goodput
    from simulator.systems import default_knobs, run_exactly, run_system

    quick, exactly = _told(run_system, words, waiting), _told(run_exactly, f"{words}, confirming", waiting)
    apart = name.startswith("fudg-")
    if rate is not None:
        knobs = default_knobs(name, spec)
        figures = measure(name, knobs, spec, question, rate, quick if apart or fast else exactly)
        return Goodput(name, knobs, rate if figures.attainment >= question.attainment else 0.0, figures)
    if scan or apart:
        found = tuned_goodput(name, spec, question, run=quick)
    else:
        found = goodput(name, default_knobs(name, spec), spec, question, run=quick)
    return found if apart or fast else confirmed(found, spec, question, exactly)


def _told(run: Run, words: str, waiting: Waiting) -> Run:
    """The same, saying before each run which one it is."""
    runs = 0

    def told(system: str, knobs: Knobs, spec: ClusterSpec, jobs: Sequence[Job]) -> None:
        nonlocal runs
        runs += 1
        waiting.say(f"{words}: run {runs} of {len(jobs)} requests")
        run(system, knobs, spec, jobs)

    return told


def _label(name: str) -> str:
    return name.removeprefix("route:")


def _print_json(found: Sequence[Goodput], spec: ClusterSpec, question: Question) -> None:
    import json

    def result(one: Goodput) -> dict[str, Any]:
        figures = one.figures
        base: dict[str, Any] = {
            "policy": _label(one.system),
            "settings": dict(one.knobs),
            "goodput_rps": one.rps,
            "runs": one.runs,
        }
        if figures is None:
            return {**base, "attainment": 0.0, "ttft_ms": None, "tpot_ms": None}
        return {
            **base,
            "rate_rps": figures.rate,
            "attainment": figures.attainment,
            "attainment_classical": figures.attainment_classical,
            "ttft_ms": figures.ttft_ms,
            "tpot_ms": figures.tpot_ms,
            "classical": {"ttft_ms": figures.ttft_classical_ms, "tpot_ms": figures.tpot_classical_ms},
            "output_tokens_per_s": figures.output_tokens_per_s,
            "preemptions": figures.preemptions,
            "cached_tokens": figures.cached_tokens,
            "prefix_hit_rate": figures.hit_rate,
        }

    report = {
        "workload": {"name": question.workload.name, "dropped": question.workload.dropped},
        "slo": {"ttft_ms": question.slo.ttft_s * 1000, "tpot_ms": question.slo.tpot_s * 1000},
        "attainment": question.attainment,
        "definition": "ecoserve" if question.switch_wait else "classical",
        "prefix_caching": "on" if spec.prefix_caching else "off",
        "kv_transfer": "auto" if spec.kv_transfer else "never",
        "instances": spec.instances,
        "devices": spec.devices,
        "hardware": spec.hardware.name,
        "results": [result(one) for one in found],
    }
    print(json.dumps(report))


def _print_table(found: Sequence[Goodput], spec: ClusterSpec, question: Question) -> None:
    from rich.console import Console

    from tidepipe.cli.admin.table import Column, named, print_table
    from workloads.mixes import describe

    console = Console()
    console.print(f"{named(question.workload.name)}: {describe(question.workload.requests)}")
    console.print(
        f"{spec.instances} instances on {spec.devices} x {spec.hardware.name}; {question.attainment:.0%} "
        f"within TTFT {question.slo.ttft_s:g} s and TPOT {question.slo.tpot_s * 1000:g} ms"
    )
    columns = [
        Column("policy"),
        Column("goodput req/s", right=True),
        Column("attained", 3, right=True),
        Column("TTFT p50/p90 ms", 1, right=True),
        Column("TPOT p50/p90 ms", 2, right=True),
        Column("found", 4, right=True),
    ]
    rows = []
    for one in sorted(found, key=lambda one: -one.rps):
        figures = one.figures
        if figures is None:
            rows.append([_label(one.system), "0", "-", "-", "-", "-"])
            continue
        rows.append(
            [
                _label(one.system),
                f"{one.rps:.2f}",
                f"{figures.attainment:.1%}",
                f"{figures.ttft_ms['p50']:.0f} / {figures.ttft_ms['p90']:.0f}",
                f"{figures.tpot_ms['p50']:.0f} / {figures.tpot_ms['p90']:.0f}",
                f"{figures.hit_rate:.1%}",
            ]
        )
    print_table(console, columns, rows)
    for one in found:
        if one.knobs:
            settings = ", ".join(f"{name} {value}" for name, value in one.knobs.items())
            console.print(named(f"{_label(one.system)}: {settings}"))


def _draw(found: Sequence[Goodput], spec: ClusterSpec, question: Question, folder: Path) -> None:
    from simulator.goodput import measure
    from simulator.online_pictures import draw_rates

    curves = {}
    for one in found:
        if one.figures is None:
            continue
        rates = [one.figures.rate * share for share in (0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25)]
        points = [
            measure(one.system, one.knobs, spec, replace(question, least_requests=200), rate)
            for rate in rates
        ]
        curves[_label(one.system)] = points
    path = draw_rates(curves, question, folder)
    print(f"wrote {path}", file=sys.stderr)
