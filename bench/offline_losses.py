"""Where offline throughput stays below its bound: which part of the makespan each cause takes.

    python -m bench.offline_losses TRACE.csv --profile L20_LLAMA2_13B.csv --mix trace --policies auto,hybrid

All shares are of the bound's makespan, and add up to the run's over it less one. Idle: the first stage
computes nothing, before the last prompt is computed and after it (drain). Step sizes: matrix products beyond
those of the bound's schedule, again before and after that. Recomputed: what preempted sequences compute
again, at the bound's price of a token. Other: sampling, rows, what chunks read of the KV cache again. (Where
the longest output alone takes as long as the bound says, other is what its chain does not need.)
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bench.offline_cells import cells, study_parser
from controller.scheduler.policies.catalog import Knobs, step_knob
from simulator.offline import PipelineSpec, run_offline
from simulator.predictions import predictor
from simulator.record import Recording, RunResult
from workloads.arrivals import MIXES
from workloads.mixes import SYNTHETIC, Workload

LONG, LONGEST = "longbench-like", 4096
"""Long prompts with short answers, and tokens of a sequence there."""


def losses(
    spec: PipelineSpec, workload: Workload, policy: str, knobs: Knobs, seed: int
) -> tuple[RunResult, Mapping[str, float]]:
    """The run, and the share of the bound's makespan that each cause takes."""
    recording = Recording()
    result = run_offline(spec, policy, workload, predictor("oracle"), seed, knobs, recording).result
    bound, cost = spec.bound(workload), spec.latency()
    whole = bound.makespan_s
    with_prompts = [place for place, step in enumerate(recording.steps) if step.tokens > step.decode_rows]
    last = max(with_prompts, default=0)
    turn = recording.steps[last].spans[0][1]
    busy, products, price = [0.0, 0.0], [0.0, 0.0], bound.token_s
    for place, step in enumerate(recording.steps):
        tail = place > last
        began, ended = step.spans[0]
        busy[tail] += ended - began
        products[tail] += cost.linear_s(step.tokens) - step.tokens * price
    computed = sum(step.tokens for step in recording.steps)
    bound_products = bound.steps * bound.tokens_per_step * price
    attention = sum(busy) - sum(products) - computed * price - (whole - bound_products)
    return result, {
        "idle": (turn - busy[0]) / whole,
        "idle in the drain": (result.makespan_s - turn - busy[1]) / whole,
        "step sizes": products[0] / whole,
        "step sizes in the drain": products[1] / whole,
        "recomputed": (computed * price - bound_products) / whole,
        "other": attention / whole,
    }


def main() -> None:
    """Run, and print a Markdown table."""
    parser = study_parser(__doc__)
    parser.add_argument("--models", default="llama2-13b")
    parser.add_argument("--devices", default="l20")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--mix", default=SYNTHETIC, choices=(SYNTHETIC, "trace", LONG))
    parser.add_argument("--policies", default="auto", help="NAME or NAME:TOKENS of a step, several")
    parser.add_argument("--seed", type=int, default=4)
    options: argparse.Namespace = parser.parse_args()
    trace: Path = options.trace
    first = True
    for cell in cells(options.models, options.devices, trace, options.profile, options.stages):
        if cell.mix != (SYNTHETIC if options.mix == LONG else options.mix):
            continue
        spec, workload = cell.spec, cell.workload(options.requests, options.seed)
        if options.mix == LONG:
            spec = replace(spec, max_total=LONGEST)
            workload = MIXES[LONG](options.requests, options.seed).within(LONGEST, LONGEST).at_once()
        for text in options.policies.split(","):
            policy, _, tokens = text.partition(":")
            knobs: Knobs = {step_knob(policy): int(tokens)} if tokens else {}
            _, found = losses(spec, workload, policy, knobs, options.seed)
            if first:
                print(f"| cell | policy | of the bound | {' | '.join(found)} |")
                print("|---|---|---|" + "---|" * len(found))
                first = False
            share = 1.0 / (1.0 + sum(found.values()))
            shown = " | ".join(f"{100 * one:.1f} %" for one in found.values())
            where = f"{cell.model} / {cell.device} / {options.mix}, {options.stages} stages"
            print(f"| {where} | {text} | {share:.3f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
