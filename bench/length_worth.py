"""What predictions of real answers are worth in virtual time: the share of perfect lengths' gain over none.

    python -m bench.length_worth DRAWS.jsonl SIGNAL.json -o WORTH.json [--profile L20_LLAMA2_13B.csv]

DRAWS.jsonl: answers (`bench.length_draws`). SIGNAL.json: what `bench.length_signal` predicted of each prompt
by models that had seen no answer to it. Llama2-13B on four L20; requests are drawn from the answers, all at
once. `text` knows the prompt's text when a request comes; `signal` learns what the model's state tells
with its first token; `siblings` knows the quantiles of the prompt's other answers: nearly the best there is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from bench.length_draws import drawn
from simulator.offline import PipelineSpec, run_offline
from simulator.predictions import Predict, Quantiles
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.lengths.request import LEVELS
from workloads.mixes import SimRequest, Workload

P50, P90 = LEVELS.index(0.5), LEVELS.index(0.9)
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {}),
    "td-pipe": ("td-pipe", {}),
    "hybrid by forecast": ("hybrid", {"occupancy": 0.0}),
}


def predictions(lines: list[dict[str, Any]], predicted: dict[str, Any]) -> dict[str, list[list[Quantiles]]]:
    """Of each answer of each prompt, by the name of who predicts."""
    kinds = ("oracle", "siblings", "text", "signal and text", "plain")
    found: dict[str, list[list[Quantiles]]] = {name: [] for name in kinds}
    plain = np.quantile(np.concatenate([line["lengths"] for line in lines]), (0.5, 0.9))
    for line in lines:
        lengths = np.array(line["lengths"], dtype=np.float64)
        of_prompt = predicted[line["id"]]
        siblings = [np.quantile(np.delete(lengths, place), (0.5, 0.9)) for place in range(len(lengths))]
        found["oracle"].append([(one, one) for one in lengths.tolist()])
        found["siblings"].append([(float(p50), float(p90)) for p50, p90 in siblings])
        found["plain"].append([(float(plain[0]), float(plain[1]))] * len(lengths))
        for name in ("text", "signal and text"):
            row = of_prompt[name]
            found[name].append([(row[P50], row[P90])] * len(lengths))
    return found


def measure(lines: list[dict[str, Any]], predicted: dict[str, Any], options: argparse.Namespace) -> Any:
    """Output tokens/s by system and predictor, means over seeds; and shares."""
    profile = read_profile(options.profile) if options.profile else None
    spec = PipelineSpec(read_shape("llama2-13b"), hardware("l20"), 4, profile, 2048)
    known = predictions(lines, predicted)
    places = [(row, column) for row, line in enumerate(lines) for column in range(len(line["lengths"]))]

    def run(system: str, first: str | None, then: str | None, seed: int) -> tuple[float, float]:
        drawn_places = np.random.default_rng(seed).choice(len(places), options.requests)
        chosen = [places[int(place)] for place in drawn_places]
        requests = tuple(
            SimRequest(lines[row]["prompt_tokens"], max(1, lines[row]["lengths"][column]), 512, 0.0)
            for row, column in chosen
        )

        def told(name: str | None) -> Predict:
            return lambda *_: [None if name is None else known[name][row][column] for row, column in chosen]

        policy, knobs = SYSTEMS[system]
        workload = Workload("real answers", requests)
        refine = told(then) if then else None
        result = run_offline(spec, policy, workload, told(first), seed, knobs, refine=refine).result
        return result.output_tokens_per_s, float(result.preemptions)

    kinds: dict[str, tuple[str | None, str | None]] = {
        "none": (None, None),
        "plain quantile": ("plain", None),
        "text": ("text", None),
        "text, then signal": ("text", "signal and text"),
        "siblings": ("siblings", None),
        "oracle": ("oracle", None),
    }
    report: dict[str, Any] = {}
    for system in options.systems.split(","):
        rows: dict[str, Any] = {}
        for kind, (first, then) in kinds.items():
            runs = [run(system, first, then, seed) for seed in range(1, options.seeds + 1)]
            rows[kind] = {
                "output_tokens_per_s": mean(one for one, _ in runs),
                "preemptions": mean(one for _, one in runs),
                "by_seed": [one for one, _ in runs],
            }
            gain = rows[kind]["output_tokens_per_s"] - rows["none"]["output_tokens_per_s"]
            rows[kind]["gain"] = gain
            print(system, kind, rows[kind], flush=True)
        whole = rows["oracle"]["gain"]
        for kind in rows:
            rows[kind]["share of the oracle's gain"] = rows[kind]["gain"] / whole if whole else None
        report[system] = rows
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("draws", type=Path, metavar="DRAWS.jsonl")
    parser.add_argument("signal", type=Path, metavar="SIGNAL.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="WORTH.json")
    parser.add_argument("--profile", type=Path, default=None, help="measured times")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    options = parser.parse_args()
    predicted = json.loads(options.signal.read_text(encoding="utf-8"))["predictions"]
    lines = [line for line in drawn(options.draws) if line["id"] in predicted]
    report = {"requests": options.requests, "systems": measure(lines, predicted, options)}
    options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
