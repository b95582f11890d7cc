"""All policies on 5,000 requests and four devices, every baseline at the best of its scanned knobs.

    python -m bench.offline_headline TRACE.csv --profile L20_LLAMA2_13B.csv -o results/

TRACE.csv: lengths in the Azure format (TIMESTAMP,ContextTokens,GeneratedTokens). Knobs are chosen on the
tuning seed, figures reported on the others: mean, and the least ratio over the seeds. Writes headline.json
and headline.png, and each policy's part of a cell as soon as it is done: started again, it goes on there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.offline_cells import Cell, cells, study_parser
from bench.parts import Figures, Parts, code_version
from simulator.offline import best_of_scan, run_offline
from simulator.predictions import predictor as named_predictor

SHOWN = (
    "output_tokens_per_s",
    "busy",
    "imbalance",
    "phase_switches",
    "preemptions",
    "steals",
    "forecast_error",
    "recomputed_tokens",
    "kv_used_mean",
)
POLICIES = ("auto", "td-pipe", "separate", "hybrid", "tp-separate", "tp-hybrid")
"""Those of the paper; other engines' schedulers: `bench.offline_engines`."""
BASELINES = tuple(name for name in POLICIES if name != "auto")


def measure(
    cell: Cell,
    policy: str,
    requests: int,
    seeds: list[int],
    tuning_requests: int,
    tuning_seed: int,
    predictor: str,
) -> Figures:
    """One policy in one cell: the best of its knobs on the tuning seed, its figures on the others."""
    predict = named_predictor(predictor)
    tuning = cell.workload(tuning_requests, tuning_seed)
    knobs = best_of_scan(cell.spec, policy, tuning, predict, tuning_seed).knobs
    rows = []
    for seed in seeds:
        result = run_offline(cell.spec, policy, cell.workload(requests, seed), predict, seed, knobs).result
        rows.append({name: getattr(result, name) for name in SHOWN})
    return {"knobs": dict(knobs), "seeds": rows}


def bounds(cell: Cell, requests: int, seeds: list[int]) -> Figures:
    """Output tokens/s that no schedule can pass, per seed."""
    found = [cell.spec.bound(cell.workload(requests, seed)).output_tokens_per_s for seed in seeds]
    return {"bounds": found}


def merge(cell: str, parts: dict[str, Figures]) -> Figures:
    """The parts of one cell together."""
    knobs = {name: parts[f"{cell} / {name}"]["knobs"] for name in POLICIES}
    seeds: list[Figures] = []
    for index, bound in enumerate(parts[f"{cell} / bound"]["bounds"]):
        rows = {name: parts[f"{cell} / {name}"]["seeds"][index] for name in POLICIES}
        seeds.append({"bound": bound, **rows})
    return {"cell": cell, "knobs": knobs, "seeds": seeds, "summary": summarize(seeds)}


def summarize(rows: list[Figures]) -> Figures:
    """Means over the seeds, and the least ratio of auto to the others on any seed."""

    def rate(row: Figures, name: str) -> float:
        return float(row[name]["output_tokens_per_s"])

    mean = {name: sum(rate(row, name) for row in rows) / len(rows) for name in POLICIES}
    busy = {name: sum(float(row[name]["busy"]) for row in rows) / len(rows) for name in POLICIES}
    best = max((name for name in BASELINES if name != "td-pipe"), key=lambda name: mean[name])
    return {
        "output_tokens_per_s": mean,
        "busy": busy,
        "bound": sum(row["bound"] for row in rows) / len(rows),
        "best_baseline": best,
        "auto_to_best_baseline_min": min(rate(row, "auto") / rate(row, best) for row in rows),
        "auto_to_td_pipe_min": min(rate(row, "auto") / rate(row, "td-pipe") for row in rows),
        "auto_to_bound_min": min(rate(row, "auto") / row["bound"] for row in rows),
        "auto_to_tp": mean["auto"] / max(mean["tp-separate"], mean["tp-hybrid"]),
        "auto_to_pp_separate": mean["auto"] / mean["separate"],
        "td_pipe_to_tp": mean["td-pipe"] / max(mean["tp-separate"], mean["tp-hybrid"]),
        "td_pipe_to_pp_separate": mean["td-pipe"] / mean["separate"],
    }


def print_row(figures: Figures) -> None:
    """One line of a Markdown table."""
    s = figures["summary"]
    rates = " | ".join(
        f"{s['output_tokens_per_s'][name]:.0f} ({s['busy'][name]:.2f})" for name in reversed(POLICIES)
    )
    print(
        f"| {figures['cell']} | {rates} | {s['bound']:.0f} | {s['auto_to_best_baseline_min']:.2f} | "
        f"{s['auto_to_td_pipe_min']:.2f} | {s['auto_to_bound_min']:.2f} |",
        flush=True,
    )


def draw(all_figures: list[Figures], path: Path) -> None:
    """Bars per cell, the bound as a line above them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    order = list(reversed(POLICIES))
    figure, axes = plt.subplots(figsize=(2.2 + 2.3 * len(all_figures), 4.2), layout="constrained")
    width = 0.8 / len(order)
    for i, name in enumerate(order):
        heights = [one["summary"]["output_tokens_per_s"][name] for one in all_figures]
        places = [x + (i - len(order) / 2 + 0.5) * width for x in range(len(all_figures))]
        axes.bar(places, heights, width, label=name)
    for x, one in enumerate(all_figures):
        bound = one["summary"]["bound"]
        axes.hlines(bound, x - 0.42, x + 0.42, colors="black", label="bound" if x == 0 else "_")
    axes.set_xticks(range(len(all_figures)), [one["cell"].replace(" / ", "\n") for one in all_figures])
    axes.set_ylabel("output tokens/s")
    axes.legend(ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure all cells."""
    parser = study_parser(__doc__)
    parser.add_argument("--models", default="llama2-13b,qwen2.5-32b")
    parser.add_argument("--devices", default="l20")
    parser.add_argument("--seeds", default="4,5,6")
    parser.add_argument("--tuning-requests", type=int, default=2000)
    parser.add_argument("--tuning-seed", type=int, default=100)
    parser.add_argument("--predictor", default="oracle")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    settings = {
        "requests": options.requests,
        "seeds": seeds,
        "tuning_requests": options.tuning_requests,
        "tuning_seed": options.tuning_seed,
        "predictor": options.predictor,
    }
    found = cells(options.models, options.devices, options.trace, options.profile)
    work: dict[str, Callable[[], Figures]] = {}
    for cell in found:
        work[f"{cell.name} / bound"] = partial(bounds, cell, options.requests, seeds)
        for name in POLICIES:
            work[f"{cell.name} / {name}"] = partial(measure, cell, name, **settings)
    parts = Parts(options.out / "headline", settings).run(work, options.jobs)
    print(f"| cell | {' | '.join(reversed(POLICIES))} | bound | auto/best | auto/td-pipe | auto/bound |")
    print("|---|" + "---|" * (len(POLICIES) + 4), flush=True)
    done = [merge(cell.name, parts) for cell in found]
    for figures in done:
        print_row(figures)
    report = {**settings, "code": code_version(), "cells": done}
    (options.out / "headline.json").write_text(json.dumps(report, indent=1))
    draw(done, options.out / "headline.png")


if __name__ == "__main__":
    main()
