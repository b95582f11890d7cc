"""What fetching beginnings from neighbours is worth, in virtual time: each cell with and without, in turn.

    python -m bench.borrowed_beginnings --workloads agents conversations --instances 2 4

Agents' and conversations' next turns come to a cluster whose instances may fetch what others have computed,
and to one whose instances may not. Shown are goodput, and at one rate what was found, fetched and waited for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.live_against_virtual import write_rows
from router.scheduler.slo import SloTarget
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Question, figures_of, goodput
from simulator.systems import cluster_of, default_knobs
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from workloads.files import open_workload


def cell(system: str, spec: ClusterSpec, question: Question, rate: float, *, search: bool) -> dict[str, Any]:
    """One system on one cluster: at this rate, and its goodput."""
    knobs = default_knobs(system, spec)
    jobs = question.jobs(rate)
    cluster = cluster_of(system, knobs, spec, len(jobs))
    cluster.run(jobs)
    return {
        "system": system.removeprefix("route:"),
        "kv_transfer": "auto" if spec.kv_transfer else "never",
        "rate": rate,
        "requests": len(jobs),
        "borrowed": cluster.log.borrowed,
        "figures": asdict(figures_of(jobs, rate, question)),
        "goodput": goodput(system, knobs, spec, question).rps if search else None,
    }


def lines(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cells, printed as they come."""
    print("| workload | instances | routing | KV travels | fetched | found | TTFT, ms | attained | req/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in options.workloads:
        load = open_workload(name, None, options.seed)
        for instances in options.instances:
            spec = ClusterSpec(
                read_shape(options.shape),
                hardware(options.hardware),
                instances,
                options.tensor,
                network_gb_s=options.gbit / 8,
            )
            question = Question(
                load.within(spec.context, spec.context),
                SloTarget(options.ttft_ms / 1000, options.tpot_ms / 1000),
                seconds=options.seconds,
                seed=options.seed,
            )
            for system in options.systems:
                for kv_transfer in (True, False):
                    here = replace(spec, kv_transfer=kv_transfer)
                    rate = options.rate * instances
                    row = {"workload": name, "instances": instances}
                    row |= cell(system, here, question, rate, search=options.goodput)
                    rows.append(row)
                    print(_line(row), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    figures = row["figures"]
    ttft = " / ".join(f"{figures['ttft_ms'][one]:.0f}" for one in ("p50", "p90", "p99"))
    best = "" if row["goodput"] is None else f"{row['goodput']:.2f}"
    cells: Sequence[object] = (
        row["workload"], row["instances"], row["system"], row["kv_transfer"], row["borrowed"],
        f"{figures['hit_rate']:.1%}", ttft, f"{figures['attainment']:.1%}", best,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """A Markdown table, and all cells as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", default="codellama-34b")
    parser.add_argument("--hardware", default="l20")
    parser.add_argument("--tensor", type=int, default=4)
    parser.add_argument("--gbit", type=float, default=10.0, help="between nodes")
    parser.add_argument("--instances", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--workloads", nargs="+", default=["agents", "conversations"])
    parser.add_argument("--systems", nargs="+", default=["route:prefix", "padg", "auto"])
    parser.add_argument("--rate", type=float, default=1.5, help="requests per second and instance")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--ttft-ms", type=float, default=5000.0)
    parser.add_argument("--tpot-ms", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goodput", action="store_true", help="search the rate up to which targets hold")
    parser.add_argument("--output", type=Path, default=Path("docs/images/borrowed-beginnings"))
    options = parser.parse_args()
    write_rows(options, lines(options))


if __name__ == "__main__":
    main()
