"""How much of a perfect order's gain an order by uncertain lengths can have: outputs on parallel places.

    python -m bench.length_order [--mix sharegpt-like] [-o ORDER.json]

What an order is worth is the tail, in which a few long outputs hold a pipeline. Here all outputs of a mix
are there at once, `places` of them run at a time, and each step is a token of each: told is the number of
steps over that of an even division. Predictions are quantiles of the mix given a normal score (Gaussian
copula) that correlates with the output's own by so much; `bench/length_carry.py` has those of real
predictors. Orders: of arrival; that of `auto` (`controller/scheduler/ordering.py`); longest expected first,
which nothing that knows no more can do much better.
"""

from __future__ import annotations

import argparse
import heapq
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from controller.scheduler.expectation import belief_of
from controller.scheduler.ordering import FinishTogether
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState, SchedulerConfig
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.types.sampling import SamplingParams
from workloads.files import open_workload

LONGEST = 2048
PROMPT, BLOCK_TOKENS = 200, 16
CORRELATIONS = (0.0, 0.26, 0.46, 0.6, 0.8, 0.95, 1.0)
_Z90 = float(ndtri(0.9))


def steps(outputs: Floats, order: list[int], places: int) -> float:
    """Until the last output has ended, over an even division of all tokens."""
    ends = [0.0] * places
    for index in order:
        heapq.heapreplace(ends, ends[0] + float(outputs[index]))
    return max(ends) * places / float(outputs.sum())


def predictions(outputs: Floats, correlation: float, chance: np.random.Generator) -> Floats:
    """(n, 2): P50 and P90 of each, tokens."""
    ranks = np.empty(len(outputs))
    ranks[np.lexsort((chance.random(len(outputs)), outputs))] = (np.arange(len(outputs)) + 0.5) / len(outputs)
    doubt = np.sqrt(1.0 - correlation**2)
    middle = correlation * (correlation * ndtri(ranks) + doubt * chance.normal(size=len(outputs)))
    if doubt == 0.0:
        return np.stack([outputs, outputs], axis=1)
    ranks = ndtr(np.stack([middle, middle + _Z90 * doubt], axis=1))
    return np.asarray(np.quantile(outputs, ranks), dtype=np.float64)


def orders(told: Floats, outputs: Floats, places: int) -> dict[str, list[int]]:
    """Of each rule; memory is what so many places hold on average."""
    held = PROMPT + float((outputs**2).sum() / outputs.sum()) / 2
    state = PipelineState(SchedulerConfig(context_length=2 * LONGEST, eos_token_ids=()))
    state.start_epoch(4, round(places * held / BLOCK_TOKENS), 4)
    line = []
    for index, (p50, p90) in enumerate(told.tolist()):
        one = Sequence(str(index), (1,) * PROMPT, SamplingParams(), LONGEST, 0.0, None)
        one.predicted_p50, one.predicted_p90 = p50, p90
        line.append(one)
    state.waiting.add(line)
    FinishTogether().apply(state)
    expected = [belief_of(one, None).remaining(0) for one in line]
    return {
        "arrival": list(range(len(outputs))),
        "auto": [int(one.sequence_id) for one in state.waiting],
        "longest first": sorted(range(len(outputs)), key=lambda index: -expected[index]),
    }


def measure(source: str, requests: int, places: int, seeds: int) -> dict[str, Any]:
    """Mean steps by correlation and order, and shares of the gain of perfect lengths, longest first."""
    mix = open_workload(source, requests, 1).within(LONGEST // 2, LONGEST).sample(requests, 1)
    rows: dict[str, dict[str, float]] = {}
    for correlation in CORRELATIONS:
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            chance = np.random.default_rng([seed, 1])
            outputs = chance.permutation([float(one.output_tokens) for one in mix.requests])
            told = predictions(outputs, correlation, chance)
            for name, order in orders(told, outputs, places).items():
                found.setdefault(name, []).append(steps(outputs, order, places))
        rows[str(correlation)] = {name: float(np.mean(values)) for name, values in found.items()}
    none, best = rows[str(CORRELATIONS[0])]["arrival"], rows[str(CORRELATIONS[-1])]["longest first"]
    for row in rows.values():
        for name in ("auto", "longest first"):
            row[f"share, {name}"] = (none - row[name]) / (none - best)
    return {"requests": requests, "places": places, "seeds": seeds, "correlation": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mix", default="sharegpt-like", help="a workload, by name or file")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--places", type=int, default=320)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path, default=None, metavar="ORDER.json")
    options = parser.parse_args()
    found = measure(options.mix, options.requests, options.places, options.seeds)
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
