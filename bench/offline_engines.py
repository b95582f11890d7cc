"""`auto` against other engines' schedulers on pipelines of L20: output rate and bubbles, of each at its best.

    python -m bench.offline_engines TRACE.csv --profile L20_LLAMA2_13B.csv --seeds 4,5,6 -o results/

Knobs are tuned on a seed that is not shown, as `bench.offline_headline` does; engines as they are shipped are
shown as well. A stage's bubbles: the share of the run in which it computes nothing, means over stages and
seeds. Writes engines.json and engines.png.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bench.offline_cells import Cell, cells, study_parser
from bench.offline_headline import SHOWN, bounds
from bench.parts import Figures, Parts, code_version
from controller.scheduler.policies.catalog import Knobs
from simulator.offline import best_of_scan, run_offline
from simulator.predictions import predictor
from workloads.mixes import SYNTHETIC

STAGES = 4
_BUDGETS = (256, 384, 512, 1024, 2048)
_VLLM: list[Knobs] = [{"token_budget": size, "max_running": most} for size in _BUDGETS for most in (256, 0)]

RIVALS: Mapping[str, tuple[str, list[Knobs]]] = {
    "vllm, defaults": ("vllm", [{}]),
    "vllm": ("vllm", _VLLM),
    # As its authors have it, the cap follows from `max_num_seqs`; ours, from the sequences that there are.
    "vllm-capped, as proposed": (
        "vllm-capped",
        [
            {"token_budget": size, "max_running": most, "cap": most // STAGES}
            for size in _BUDGETS
            for most in (256, 512)
        ],
    ),
    "vllm-capped": ("vllm-capped", _VLLM),
    "gllm, defaults": ("gllm", [{}]),
    "gllm": ("gllm", [{"token_budget": size, "iterations": n} for size in _BUDGETS for n in (2, 8)]),
    "hybrid": ("hybrid", [{"token_budget": size} for size in _BUDGETS]),
    "auto": ("auto", [{}]),
    "auto, no predictions": ("auto", [{}]),
}
"""Name in tables: policy, and the settings that are tried."""


def measure(cell: Cell, name: str, requests: int, seeds: list[int], tuning: int, tuning_seed: int) -> Figures:
    """One rival in one cell: its best settings on the tuning seed, its figures on the others."""
    policy, knobs = RIVALS[name]
    predict = predictor("none" if name.endswith("no predictions") else "oracle")
    best = knobs[0]
    if len(knobs) > 1:
        load = cell.workload(tuning, tuning_seed)
        best = best_of_scan(cell.spec, policy, load, predict, tuning_seed, knobs).knobs
    rows = []
    for seed in seeds:
        run = run_offline(cell.spec, policy, cell.workload(requests, seed), predict, seed, best)
        rows.append({shown: getattr(run.result, shown) for shown in SHOWN})
    return {"knobs": dict(run.knobs), "seeds": rows}


def merge(cell: str, parts: Mapping[str, Figures]) -> Figures:
    """The parts of one cell together; ratios are the least ones over the seeds."""
    found = {name: parts[f"{cell} / {name}"] for name in RIVALS}

    def rates(name: str) -> list[float]:
        return [float(row["output_tokens_per_s"]) for row in found[name]["seeds"]]

    def mean(name: str, figure: str) -> float:
        return sum(float(row[figure]) for row in found[name]["seeds"]) / len(found[name]["seeds"])

    limits = parts[f"{cell} / bound"]["bounds"]
    summary = {
        name: {
            "output_tokens_per_s": mean(name, "output_tokens_per_s"),
            "bubbles": 1.0 - mean(name, "busy"),
            "imbalance": mean(name, "imbalance"),
            "auto_to_it_min": min(a / b for a, b in zip(rates("auto"), rates(name), strict=True)),
            "auto_unpredicted_to_it_min": min(
                a / b for a, b in zip(rates("auto, no predictions"), rates(name), strict=True)
            ),
        }
        for name in RIVALS
    }
    return {"cell": cell, "bound": sum(limits) / len(limits), "summary": summary, "runs": found}


def print_table(figures: Figures) -> None:
    """One cell, in Markdown."""
    print(f"\n{figures['cell']}: at most {figures['bound']:.0f}\n")
    print("| scheduler | best settings | output tokens/s | bubbles | uneven | auto / it | unpredicted |")
    print("|---|---|---|---|---|---|---|")
    for name, one in figures["summary"].items():
        knobs = figures["runs"][name]["knobs"]
        shown = ("token_budget", "max_running", "cap", "iterations", "extra_batches")
        least = f"{one['auto_to_it_min']:.2f} | {one['auto_unpredicted_to_it_min']:.2f}"
        text = ", ".join(f"{knob} {knobs[knob]}" for knob in shown if knob in knobs)
        print(
            f"| {name} | {text} | {one['output_tokens_per_s']:.0f} | {one['bubbles']:.1%} | "
            f"{one['imbalance']:.1%} | {least} |",
            flush=True,
        )


def draw(done: list[Figures], path: Path) -> None:
    """Rates above, bubbles below, a group of bars for each cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(
        2,
        1,
        figsize=(max(7.0, 2.4 + 2.4 * len(done)), 6.4),
        layout="constrained",
        sharex=True,
        height_ratios=(3, 2),
    )
    width = 0.84 / len(RIVALS)
    for i, name in enumerate(RIVALS):
        places = [x + (i - len(RIVALS) / 2 + 0.5) * width for x in range(len(done))]
        found = [one["summary"][name] for one in done]
        top.bar(places, [one["output_tokens_per_s"] for one in found], width, label=name)
        bottom.bar(places, [100 * one["bubbles"] for one in found], width)
    for x, one in enumerate(done):
        top.hlines(one["bound"], x - 0.43, x + 0.43, colors="black", label="bound" if x == 0 else "_")
    top.set_ylabel("output tokens/s")
    bottom.set_ylabel("bubbles, % of a stage's time")
    bottom.set_xticks(range(len(done)), [one["cell"].replace(" / ", "\n") for one in done])
    top.legend(ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure all cells."""
    parser = study_parser(__doc__)
    parser.add_argument("--models", default="llama2-13b,qwen2.5-32b")
    parser.add_argument("--mixes", default=f"{SYNTHETIC},trace")
    parser.add_argument("--seeds", default="4,5,6")
    parser.add_argument("--tuning-requests", type=int, default=2000)
    parser.add_argument("--tuning-seed", type=int, default=100)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    settings = {
        "requests": options.requests,
        "seeds": seeds,
        "tuning": options.tuning_requests,
        "tuning_seed": options.tuning_seed,
    }
    every = cells(options.models, "l20", options.trace, options.profile, STAGES)
    found = [cell for mix in options.mixes.split(",") for cell in every if cell.mix == mix]
    work: dict[str, Callable[[], Figures]] = {}
    for cell in found:
        work[f"{cell.name} / bound"] = partial(bounds, cell, options.requests, seeds)
        for name in RIVALS:
            work[f"{cell.name} / {name}"] = partial(measure, cell, name, **settings)
    parts = Parts(options.out / "engines", settings).run(work, options.jobs)
    done = [merge(cell.name, parts) for cell in found]
    for figures in done:
        print_table(figures)
    report = {**settings, "code": code_version(), "cells": done}
    (options.out / "engines.json").write_text(json.dumps(report, indent=1))
    draw(done, options.out / "engines.png")


if __name__ == "__main__":
    main()
