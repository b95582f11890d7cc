"""Which assumptions decide the ratio of pipelines to tensor parallelism and to a naive pipeline.

    python -m bench.offline_assumptions TRACE.csv --profile L20_LLAMA2_13B.csv

Llama2-13B on four L20: the all-reduce bandwidth is varied for tensor parallelism, the number of micro-batches
in flight for separate batching on a pipeline. Prints output tokens/s and the ratios of td-pipe and auto.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bench.offline_cells import cells
from controller.simulation.offline import Plant, run_offline
from controller.simulation.predictions import predictor
from controller.simulation.setups import Knobs
from controller.simulation.workload import Workload

ALL_REDUCE_GB_S = (6, 8, 12, 20)
MICROBATCHES = (1, 4)


def main() -> None:
    """Measure and print a Markdown table per length mix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--profile", type=Path, default=None, help="tokens,ms of Llama2-13B on one L20")
    parser.add_argument("--model", default="llama2-13b")
    parser.add_argument("--device", default="l20")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    predict = predictor("oracle")
    for cell in cells(options.model, options.device, options.trace, options.profile):
        workload = cell.workload(options.requests, options.seed)

        def rate(policy: str, plant: Plant, load: Workload, knobs: Knobs) -> float:
            return run_offline(plant, policy, load, predict, options.seed, knobs).result.output_tokens_per_s

        ours = {name: rate(name, cell.plant, workload, {}) for name in ("td-pipe", "auto")}
        print(f"\n{cell.name}: td-pipe {ours['td-pipe']:.0f}, auto {ours['auto']:.0f} output tokens/s\n")
        print("| baseline | output tokens/s | td-pipe / it | auto / it |\n|---|---|---|---|")
        rows = {}
        for bandwidth in ALL_REDUCE_GB_S:
            device = replace(cell.plant.hardware, allreduce_gb_s=float(bandwidth))
            plant = replace(cell.plant, hardware=device)
            label = f"TP, all-reduce at {bandwidth} GB/s (better of separate and hybrid)"
            rows[label] = max(rate(name, plant, workload, {}) for name in ("tp-separate", "tp-hybrid"))
        for count in MICROBATCHES:
            knobs: Knobs = {"extra_batches": count - cell.plant.devices, "token_budget": 512}
            label = f"PP, separate batching, {count} micro-batches in flight"
            rows[label] = rate("separate", cell.plant, workload, knobs)
        for label, value in rows.items():
            print(f"| {label} | {value:.0f} | {ours['td-pipe'] / value:.2f} | {ours['auto'] / value:.2f} |")


if __name__ == "__main__":
    main()
