"""What each technique brings, and what the quality of length predictions is worth.

    python -m bench.offline_ablation TRACE.csv --profile L20_LLAMA2_13B.csv -o results/

One technique is changed at a time, everything else stays. Writes ablation.json, and each variant as soon as
it is done (started again, it goes on there); prints a table of output tokens/s and the change against the
full policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial

from bench.offline_cells import Cell, cells, study_parser
from bench.parts import Figures, Parts
from controller.scheduler.policies.catalog import Knobs
from simulator.offline import run_offline
from simulator.predictions import predictor

_ALL: Knobs = {"order": True, "occupancy": 0.0, "stealing": "time"}
AUTO: dict[str, tuple[Knobs, str]] = {
    "auto": ({}, "oracle"),
    "auto, predictions off by 1.3x (noise:0.25)": ({}, "noise:0.25"),
    "auto, predictions off by 1.65x (noise:0.5)": ({}, "noise:0.5"),
    "auto, predictions off by 2.7x (noise:1)": ({}, "noise:1"),
    "auto, no predictions": ({}, "none"),
    "auto, first come first served": ({"order": False}, "oracle"),
    "auto, admission by occupancy 0.99": ({"occupancy": 0.99}, "oracle"),
    "auto, stealing by count": ({"stealing": "count"}, "oracle"),
    "auto, no stealing": ({"stealing": "none"}, "oracle"),
    "auto, every step 256 tokens": ({"fixed_size": 256}, "oracle"),
    "auto, every step 512 tokens": ({"fixed_size": 512}, "oracle"),
    "auto, one more batch than stages": ({"extra_batches": 1}, "oracle"),
    "auto, victims: the newest": ({"victims": "newest-idle"}, "noise:0.5"),
}
HYBRID: dict[str, tuple[Knobs, str]] = {
    "hybrid": ({}, "oracle"),
    "hybrid, order": ({"order": True}, "oracle"),
    "hybrid, forecast": ({"occupancy": 0.0}, "oracle"),
    "hybrid, stealing by time": ({"stealing": "time"}, "oracle"),
    "hybrid, stealing by count": ({"stealing": "count"}, "oracle"),
    "hybrid, order, forecast, stealing by time": (_ALL, "oracle"),
    "hybrid, order, forecast, stealing by time, noise:0.5": (_ALL, "noise:0.5"),
    "hybrid, order, forecast, stealing by time, no predictions": (_ALL, "none"),
}
"""What `auto` has beside the sizes of its steps and its phases, given to hybrid batching."""
TD_PIPE: dict[str, tuple[Knobs, str]] = {
    "td-pipe": ({}, "oracle"),
    "td-pipe, noise:0.5": ({}, "noise:0.5"),
    "td-pipe, no predictions": ({}, "none"),
    "td-pipe, fill to 99 % (no forecast)": ({"occupancy": 0.99}, "oracle"),
    "td-pipe, fill to 70 % (no forecast)": ({"occupancy": 0.7}, "oracle"),
    "td-pipe, stealing by count (paper)": ({"stealing": "count"}, "oracle"),
    "td-pipe, no stealing": ({"stealing": "none"}, "oracle"),
    "td-pipe, intensity switch (paper)": ({"switching": "intensity:0"}, "oracle"),
    "td-pipe, intensity switch, margin 0.05": ({"switching": "intensity:0.05"}, "oracle"),
    "td-pipe, switch at half": ({"switching": "fixed:0.5"}, "oracle"),
    "td-pipe, switch at 95 %": ({"switching": "fixed:0.95"}, "oracle"),
}


VARIANTS = {"auto": AUTO, "hybrid": HYBRID, "td-pipe": TD_PIPE}


def measure(cell: Cell, policy: str, knobs: Knobs, quality: str, requests: int, seed: int) -> Figures:
    """Output tokens/s of one variant."""
    workload = cell.workload(requests, seed)
    run = run_offline(cell.spec, policy, workload, predictor(quality), seed, knobs)
    return {"output_tokens_per_s": run.result.output_tokens_per_s}


def main() -> None:
    """Measure all cells; print a Markdown table."""
    parser = study_parser(__doc__)
    parser.add_argument("--models", default="llama2-13b,qwen2.5-32b")
    parser.add_argument("--devices", default="l20")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policies", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--hybrid-budget", type=int, default=256, help="tokens of a step of hybrid batching")
    parser.add_argument("--only", default="", help="variants whose label matches")
    options = parser.parse_args()
    budget: Knobs = {"token_budget": options.hybrid_budget}
    chosen = {
        policy: {
            label: ({**budget, **knobs} if policy == "hybrid" else knobs, quality)
            for label, (knobs, quality) in VARIANTS[policy].items()
            if label == policy or re.search(options.only, label)
        }
        for policy in options.policies.split(",")
    }
    labels = [label for variants in chosen.values() for label in variants]
    settings = {"requests": options.requests, "seed": options.seed}
    kept = {**settings, "hybrid_budget": options.hybrid_budget}
    found = cells(options.models, options.devices, options.trace, options.profile)
    work: dict[str, Callable[[], Figures]] = {}
    for cell in found:
        for policy, variants in chosen.items():
            for label, (knobs, quality) in variants.items():
                work[f"{cell.name} / {label}"] = partial(measure, cell, policy, knobs, quality, **settings)
    parts = Parts(options.out / "ablation", kept).run(work, options.jobs)
    table = {
        cell.name: {label: float(parts[f"{cell.name} / {label}"]["output_tokens_per_s"]) for label in labels}
        for cell in found
    }
    (options.out / "ablation.json").write_text(json.dumps(table, indent=1))
    print(f"| variant | {' | '.join(table)} |")
    print("|---|" + "---|" * len(table))
    for label in labels:
        base = label.split(",")[0]
        shown = [
            f"{rates[label]:.0f}" + (f" ({rates[label] / rates[base] - 1:+.1%})" if label != base else "")
            for rates in table.values()
        ]
        print(f"| {label} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
