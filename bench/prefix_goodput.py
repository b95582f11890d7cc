"""Goodput with conversations and agents: does it pay that the router knows what instances have computed?

    python -m bench.prefix_goodput OUT.json [--seeds 1,2,3] [--seconds 90] [--mixes agents] [--plot OUT.png]

8 instances of CodeLlama-34B on 2 L20 each, virtual time, targets 5 s and 100 ms for 90 % of the requests. All
keep and share KV blocks, but for `padg-no-reuse`. Prompts ride on decode steps of 256 tokens everywhere.
Turns come when the answer before them is there and has been thought about. Nothing is tuned on any seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from bench.online_pictures import draw_panels
from controller.scheduler.policies.catalog import Knobs
from router.scheduler.slo import SloTarget
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Figures, Question, measure
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from workloads.files import open_workload
from workloads.goodput import search_goodput

TARGETS = SloTarget(5.0, 0.1)
LONGEST = 8192
STEP_TOKENS = 256
PRECISION = 0.08

MIXES: Mapping[str, tuple[str, float]] = {
    "agents": ("agents:turns=5,think=1", 8.0),
    "conversations": ("conversations:turns=4,think=3,answer=60", 32.0),
}
"""Workloads, and the rate at which the search begins. Sessions of about half a minute, so that as many end as
begin for most of a run."""

SYSTEMS: Mapping[str, tuple[str, Knobs]] = {
    "padg": ("padg", {}),
    "padg-blind": ("padg", {"blind": 1}),
    "prefix": ("hybrid", {"routing": "prefix"}),
    "least-loaded": ("hybrid", {"routing": "least-loaded"}),
    "most-hits": ("hybrid", {"routing": "most-hits"}),
    "padg-no-reuse": ("padg", {}),
}
"""By what they are called in the table: instances' policy, and what else is chosen."""


def search(mix: str, name: str, seed: int, seconds: float) -> dict[str, Any]:
    """One goodput, with what users see at it."""
    began = time.process_time()
    source, begin = MIXES[mix]
    system, more = SYSTEMS[name]
    knobs: Knobs = {**more, "budget": STEP_TOKENS}
    spec = ClusterSpec(read_shape("codellama-34b"), hardware("l20"), 8, 2, max_total=LONGEST)
    spec = replace(spec, prefix_caching=name != "padg-no-reuse")
    load = open_workload(source, 20_000, seed).within(LONGEST, LONGEST)
    asked = Question(load, TARGETS, seconds=seconds, seed=seed)
    trial = search_goodput(begin, begin / 16, PRECISION)
    best: Figures | None = None
    rate, runs = next(trial), 0
    while True:
        figures = measure(system, knobs, spec, asked, rate)
        runs += 1
        attained = figures.attainment >= asked.attainment
        best = figures if attained and (best is None or rate > best.rate) else best
        try:
            rate = trial.send(attained)
        except StopIteration as end:
            goodput = float(end.value)
            break
    return {
        "mix": mix, "system": name, "seed": seed, "goodput_rps": goodput, "runs": runs,
        "cpu_s": round(time.process_time() - began, 1), "figures": None if best is None else asdict(best),
    }  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="picture of the means")
    options = parser.parse_args()
    mixes, names = options.mixes.split(","), options.systems.split(",")
    seeds = [int(part) for part in options.seeds.split(",")]
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.processes) as pool:
        cells = [(mix, name, seed) for mix in mixes for seed in seeds for name in names]
        for one in as_completed([pool.submit(search, *cell, options.seconds) for cell in cells]):
            results.append(one.result())
            report = {"seconds": options.seconds, "results": sorted(results, key=_place)}
            options.output.write_text(json.dumps(report, indent=1) + "\n")
    table: dict[str, dict[str, float]] = {mix: {} for mix in mixes}
    for mix in mixes:
        for name in names:
            own = [one for one in results if (one["mix"], one["system"]) == (mix, name)]
            rates = ", ".join(f"{one['goodput_rps']:.1f}" for one in sorted(own, key=_place))
            hits = mean(one["figures"]["hit_rate"] for one in own if one["figures"])
            table[mix][name] = mean(one["goodput_rps"] for one in own)
            print(f"{mix} {name}: {rates}; mean {table[mix][name]:.1f}; {hits:.0%} found")
    if options.plot:
        draw_panels(table, "P90 goodput, turns/s", options.plot)


def _place(result: dict[str, Any]) -> tuple[str, str, int]:
    return result["mix"], result["system"], result["seed"]


if __name__ == "__main__":
    main()
