"""What `tidepipe plan` shows, on terminals of 80 columns too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from simulator.goodput import Figures, Question
from simulator.layouts import Fleet, Layout
from simulator.offline_plan import OfflinePlan, Way
from simulator.planner import Choice, Cluster, Plan
from tidepipe.cli.admin.table import Column, named, print_table
from tidepipe.cli.plan_start import Deployment, commands
from workloads.mixes import Workload, describe

_SHOWN = 4


def show_plan(plan: Plan, fleet: Fleet, question: Question, start: Deployment) -> None:
    """The answer, what it rests on, the frontier, and what starts it."""
    console = Console()
    _say_load(console, question.workload, fleet)
    slo = question.slo
    console.print(
        f"wanted: {plan.rate:g} requests/s, {question.attainment:.0%} of them "
        f"within TTFT {slo.ttft_s:g} s and TPOT {slo.tpot_s * 1000:g} ms"
    )
    console.print()
    best = plan.best
    if best is None:
        if plan.unfinished:
            console.print(f"nothing found in time (during {plan.unfinished}): give more --budget-s")
        else:
            console.print("nothing holds these targets at any rate: a step alone takes longer")
        _say_pruned(console, plan)
        return
    if plan.holds:
        console.print(f"cheapest: {_cluster(best, start)}", style="bold")
        _say_margin(console, plan)
    else:
        what = "found in time" if plan.unfinished else "of these devices"
        console.print(f"nothing {what} holds it; most: {best.outcome.rate:.3g} requests/s", style="bold")
        console.print(_cluster(best, start))
        _say_figures(console, best.outcome.figures, "there")
    for one in _kinds(plan.others, best)[:_SHOWN]:
        console.print(f"as cheap: {_cluster(one)}")
    _say_frontier(console, plan)
    _say_pruned(console, plan)
    if plan.unfinished:
        console.print(f"the time was up during {plan.unfinished}: more --budget-s or --jobs would say more")
    if plan.holds:
        console.print()
        if start.policy:
            print(commands(start))
        else:
            console.print(f"{best.choice.system} is simulated alone: no command starts it yet")


def show_offline(plan: OfflinePlan, fleet: Fleet, load: Workload, start: Deployment) -> None:
    """Ways by their time; whether tensors or pipelines win; what starts the first."""
    console = Console()
    _say_load(console, load, fleet)
    ranks = {"instances": 0, "stages x tensor": 0, "time": 0, "output tok/s": 1, "of its bound": 2}
    columns = [Column("policy"), *(Column(name, rank, right=True) for name, rank in ranks.items())]
    rows = []
    for way, run in plan.runs:
        took = run.result.makespan_s
        layout = f"{way.layout.stages} x {way.layout.tensor}"
        speed, share = f"{load.output_tokens / took:.0f}", f"{way.bound_s / took:.0%}"
        rows.append([way.policy, str(way.instances), layout, f"{took:.0f} s", speed, share])
    print_table(console, columns, rows)
    console.print(_who_wins(plan))
    if plan.pruned:
        console.print(f"not run, as their bound is later: {_ways(plan.pruned)}")
    if plan.unfinished:
        console.print(f"not run, as the time was up: {_ways(plan.unfinished)}")
    console.print()
    files = ("IN.jsonl", "OUT.jsonl")
    print(commands(start, files))
    if start.nodes > 1:
        print(f"\n# then, on NODE1\ntidepipe batch {files[0]} -o {files[1]} --endpoint ${{NODE1}}:7070 \\")
        print("    --tls-ca certs/ca.pem --tls-cert certs/inference.pem --tls-key certs/inference.key")


def _who_wins(plan: OfflinePlan) -> str:
    first, took = plan.runs[0][0], plan.runs[0][1].result.makespan_s
    kinds = ("tensor parallelism", "a pipeline")
    winner, loser = kinds if first.by_tensors else kinds[::-1]
    for way, run in plan.runs:
        if way.by_tensors != first.by_tensors:
            share = took / run.result.makespan_s
            beaten = f"{way.policy}, the best of {loser}"
            return f"{winner} wins: {first.policy} takes {share:.0%} of the time of {beaten}"
    late = any(way.by_tensors != first.by_tensors for way in plan.pruned)
    why = "its bound is later than that" if late else "it was not looked at"
    return f"{winner} wins ({first.policy}); {loser}: {why}"


def _ways(ways: Sequence[Way]) -> str:
    shown = [f"{way.policy} {way.layout.stages} x {way.layout.tensor}" for way in ways[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(ways) - _SHOWN} more" if len(ways) > _SHOWN else "")


def _say_load(console: Console, load: Workload, fleet: Fleet) -> None:
    console.print(named(f"{load.name}: {describe(load.requests)}"))
    if load.dropped:
        console.print(f"{load.dropped} requests left out: longer than the context, or empty")
    console.print(
        f"at most {fleet.nodes} node{'s' * (fleet.nodes > 1)} of {fleet.gpus} x {fleet.hardware.name}"
    )


def _cluster(one: Cluster, start: Deployment | None = None) -> str:
    nodes = start.nodes if start else 0
    where = f" on {nodes} node{'s' * (nodes > 1)}" if nodes else ""
    return (
        f"{one.devices} devices{where}: {one.instances} x {_layout(one.choice.layout)}, {_policy(one.choice)}"
    )


def _kinds(clusters: Sequence[Cluster], beside: Cluster) -> list[Cluster]:
    """One of each layout and system."""
    found = {(beside.choice.layout, beside.choice.system): beside}
    for one in clusters:
        found.setdefault((one.choice.layout, one.choice.system), one)
    return list(found.values())[1:]


def _layout(layout: Layout) -> str:
    parts = [f"{layout.stages} stages"] if layout.stages > 1 else []
    parts += [f"{layout.tensor} tensor-parallel"] if layout.tensor > 1 else []
    return f"({' of '.join(parts) or '1 device'})"


def _policy(choice: Choice) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in choice.settings if name != "routing")
    return f"{choice.system}{f' ({settings})' if settings else ''}"


def _say_margin(console: Console, plan: Plan) -> None:
    if plan.bears is not None:
        bears = plan.bears.rate
        console.print(f"margin: {bears / plan.rate:.2f} (it bears {bears:.3g} requests/s)")
    if plan.confirmed is not None:
        how = f"by the controllers' scheduler, the worse of {plan.confirmed.runs} fresh seeds"
        _say_figures(console, plan.confirmed.figures, how)
    elif plan.best is not None:
        _say_figures(
            console,
            plan.best.outcome.figures,
            "by the instances that fast-forward; not confirmed by the controllers' scheduler",
        )


def _say_figures(console: Console, figures: Figures | None, how: str) -> None:
    if figures is None:
        return
    ttft, tpot = (
        " / ".join(f"{value:.0f}" for value in one.values()) for one in (figures.ttft_ms, figures.tpot_ms)
    )
    console.print(f"attained {figures.attainment:.1%}, TTFT {ttft} ms, TPOT {tpot} ms (p50 / p90 / p99)")
    console.print(f"({how})")


def _say_frontier(console: Console, plan: Plan) -> None:
    if not plan.frontier:
        return
    console.print()
    names = {"devices": 0, "goodput req/s": 0, "instances": 1, "stages x tensor": 0}
    columns = [*(Column(name, rank, right=True) for name, rank in names.items()), Column("policy", 2)]
    rows = []
    for one in plan.frontier:
        layout = f"{one.choice.layout.stages} x {one.choice.layout.tensor}"
        goodput = f"{one.outcome.rate:.2f}"
        rows.append([str(one.devices), goodput, str(one.instances), layout, _policy(one.choice)])
    print_table(console, columns, rows)


def _say_pruned(console: Console, plan: Plan) -> None:
    reasons = Counter(_kind(one.why) for one in plan.pruned)
    parts = [f"{count} {kind}" for kind, count in reasons.most_common()]
    console.print(
        f"looked at {len(plan.tried)} clusters in {plan.runs} runs; not at {len(plan.pruned)} choices"
        + (f": {', '.join(parts)}" if parts else "")
    )


def _kind(why: str) -> str:
    if why.startswith("by the fluid bound"):
        return "by their bound"
    return "that do not fit" if "fit" in why else "that cannot be"
