"""Which assumptions decide the ratio of pipelines to tensor parallelism and to a naive pipeline.

    python -m bench.offline_assumptions TRACE.csv --profile L20_LLAMA2_13B.csv -o results/

The all-reduce bandwidth is varied for tensor parallelism, the number of micro-batches in flight for separate
batching on a pipeline. Prints output tokens/s and the ratios of td-pipe and auto. Each figure is written as
soon as it is there: started again, it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from bench.offline_cells import Cell, cells, study_parser
from bench.parts import Figures, Parts
from controller.scheduler.policies.catalog import Knobs
from simulator.offline import run_offline
from simulator.predictions import predictor

ALL_REDUCE_GB_S = (5, 6, 8, 12, 20)
MICROBATCHES = (1, 2, 4)
TP = ("tp-separate", "tp-hybrid")
OURS = ("td-pipe", "auto")


def measure(cell: Cell, policy: str, all_reduce: int, knobs: Knobs, requests: int, seed: int) -> Figures:
    """Output tokens/s of one policy; all_reduce in GB/s, 0 for the device's own."""
    spec = cell.spec
    if all_reduce:
        spec = replace(spec, hardware=replace(spec.hardware, allreduce_gb_s=float(all_reduce)))
    run = run_offline(spec, policy, cell.workload(requests, seed), predictor("oracle"), seed, knobs)
    return {"output_tokens_per_s": run.result.output_tokens_per_s}


def variants(cell: Cell) -> dict[str, tuple[str, int, Knobs]]:
    """Everything that is run in a cell, by name."""
    found: dict[str, tuple[str, int, Knobs]] = {name: (name, 0, {}) for name in OURS}
    for bandwidth in ALL_REDUCE_GB_S:
        found |= {f"{name} at {bandwidth}": (name, bandwidth, {}) for name in TP}
    for count in MICROBATCHES:
        knobs: Knobs = {"extra_batches": count - cell.spec.devices, "token_budget": 512}
        found[f"separate with {count}"] = ("separate", 0, knobs)
    return found


def print_table(cell: Cell, rates: dict[str, float]) -> None:
    """Markdown."""
    print(f"\n{cell.name}: td-pipe {rates['td-pipe']:.0f}, auto {rates['auto']:.0f} output tokens/s\n")
    print("| baseline | output tokens/s | td-pipe / it | auto / it |\n|---|---|---|---|")
    rows = {
        f"TP, all-reduce at {bandwidth} GB/s (better of separate and hybrid)": max(
            rates[f"{name} at {bandwidth}"] for name in TP
        )
        for bandwidth in ALL_REDUCE_GB_S
    }
    for count in MICROBATCHES:
        rows[f"PP, separate batching, {count} micro-batches in flight"] = rates[f"separate with {count}"]
    for label, rate in rows.items():
        print(f"| {label} | {rate:.0f} | {rates['td-pipe'] / rate:.2f} | {rates['auto'] / rate:.2f} |")


def main() -> None:
    """Measure and print a table per length mix."""
    parser = study_parser(__doc__)
    parser.add_argument("--model", default="llama2-13b")
    parser.add_argument("--device", default="l20")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    settings = {"requests": options.requests, "seed": options.seed}
    found = cells(options.model, options.device, options.trace, options.profile)
    work: dict[str, Callable[[], Figures]] = {}
    for cell in found:
        for name, (policy, all_reduce, knobs) in variants(cell).items():
            work[f"{cell.name} / {name}"] = partial(measure, cell, policy, all_reduce, knobs, **settings)
    parts = Parts(options.out / "assumptions", settings).run(work, options.jobs)
    for cell in found:
        rates = {
            name: float(parts[f"{cell.name} / {name}"]["output_tokens_per_s"]) for name in variants(cell)
        }
        print_table(cell, rates)


if __name__ == "__main__":
    main()
