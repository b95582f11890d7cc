"""What predictions of lengths are worth on a live cluster whose KV memory is tight.

    python -m bench.length_live DRAWS.jsonl PROMPTS.jsonl -o LIVE.json --profile L20_LLAMA2_13B.csv

Real processes, RPCs and prompts; stages are emulated, and slept through, so that two cores serve. The
lengths of the answers are real ones (bench/data, temperature 0.7): a request ends at the token that a stage
puts at that place, which nobody else knows. All come at once; --rounds times in turn, each kind on a cluster
of its own:

* model: a predictor that was trained on the answers to other prompts (those of DRAWS.jsonl, many to each, and
  single ones), and is asked again as answers grow;
* running quantile: a predictor without a model;
* none: no predictor can be reached; the controller has what it saw itself;
* oracle: each request says how long its answer will be.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.length_draws import drawn
from bench.length_floor import LENGTHS, Drawn, other_answers, with_prompts
from bench.predictor_data import joined
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from launcher.provision.provisioner import InstanceProvisioner
from predictor.training.fit import fit
from stage_worker.executors.emulated import token_at
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.latency.files import read_shape
from tidepipe_common.lengths.store import save_lengths
from tidepipe_common.model_source import resolve_model

KINDS = ("model", "running quantile", "none", "oracle")
MODEL = "smollm2-135m"
TIMEOUT_S = 1800.0
NOBODY = "127.0.0.1:9"
"""Where no predictor listens (the discard port)."""


class Unpredicted(LocalCluster):
    """A cluster whose controllers cannot reach its predictor."""

    async def _open_machines(self, predictor: str) -> InstanceProvisioner:
        return await super()._open_machines(NOBODY)


def train(prompts: list[dict[str, Any]], chosen: list[dict[str, Any]], path: Path, folder: Path) -> None:
    """A model of the answers to these prompts, and of single answers to all that are not among the chosen."""
    known = [
        one
        for line in prompts
        for one in Drawn(line, np.array(line["lengths"], dtype=np.float64)).observations()
    ]
    known += other_answers(path, LENGTHS, chosen)
    order = np.random.default_rng(0).permutation(len(known))
    save_lengths(fit([known[place] for place in order], "hazard/1").model, folder)


async def run(kind: str, chosen: list[dict[str, Any]], model: Path, options: argparse.Namespace) -> Any:
    """One kind of prediction, on a fresh cluster. chosen: as `bench.predictor_data` joins them."""
    config = ClusterConfig(
        model=MODEL,
        executor="emulated",
        hardware=options.hardware,
        profile=str(options.slowed),
        stages=options.stages,
        policy=options.policy,
        kv_blocks=options.kv_blocks,
        predictor=model if kind == "model" else None,
        log_level="error",
    )
    shape = read_shape(str(resolve_model(MODEL) / "config.json"))

    def ends(one: dict[str, Any]) -> dict[str, Any]:
        output: int = one["output_tokens"]
        if kind == "oracle":
            return {"max_tokens": output, "ignore_eos": True}
        if one["finish_reason"] == "length":
            return {"max_tokens": one["max_tokens"]}
        last = token_at(one["prompt_tokens"] + output - 1, shape)
        return {"max_tokens": one["max_tokens"], "stop_token_ids": [last]}

    cluster_of = Unpredicted if kind == "none" else LocalCluster
    async with cluster_of(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        began, load = time.monotonic(), os.getloadavg()[0]
        answers = await asyncio.gather(
            *(
                client.generate(
                    [{"role": "user", "content": one["prompt"]}],
                    temperature=one["temperature"],
                    skip_text=True,
                    timeout=TIMEOUT_S,
                    **ends(one),
                )
                for one in chosen
            )
        )
        seconds = time.monotonic() - began
    tokens = sum(answer.usage.output_tokens for answer in answers)
    return {
        "kind": kind,
        "output_tokens": tokens,
        "wanted": sum(one["output_tokens"] for one in chosen),
        "seconds": seconds,
        "output_tokens_per_s": tokens / seconds,
        "preemptions": sum(answer.usage.preemptions for answer in answers),
        "load_average_before": load,
    }


def slowed(profile: Path, factor: float, path: Path) -> Path:
    """A profile of a device that is so many times slower."""
    with profile.open(newline="", encoding="utf-8") as source:
        head, *rows = csv.reader(source)
    with path.open("w", newline="", encoding="utf-8") as target:
        csv.writer(target).writerows([head, *([row[0], float(row[1]) * factor] for row in rows)])
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("draws", type=Path, metavar="DRAWS.jsonl")
    parser.add_argument("prompts", type=Path, metavar="PROMPTS.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="LIVE.json")
    parser.add_argument("--profile", type=Path, required=True, help="times of the whole model on one device")
    parser.add_argument("--slower", type=float, default=2.0, help="times: so that the cores keep up")
    parser.add_argument("--hardware", default="l20")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--kv-blocks", type=int, default=600)
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    lines = with_prompts(drawn(options.draws), options.prompts)
    order = np.random.default_rng(1).permutation(len(lines))
    served, known = order[: options.requests], order[options.requests :]
    singles = {one["id"]: one for one in joined(options.prompts, LENGTHS)}
    chosen = [singles[lines[place]["id"]] for place in served]
    report: dict[str, Any] = {"requests": len(chosen), "kv_tokens": 16 * options.kv_blocks, "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        options.slowed = slowed(options.profile, options.slower, Path(folder) / "profile.csv")
        train([lines[place] for place in known], chosen, options.prompts, Path(folder) / "model")
        for number in range(options.rounds):
            for kind in options.kinds.split(","):
                found = asyncio.run(run(kind, chosen, Path(folder) / "model", options))
                report["runs"].append({"round": number, **found})
                print(report["runs"][-1], flush=True)
                report["medians"] = {
                    name: {
                        figure: median(one[figure] for one in report["runs"] if one["kind"] == name)
                        for figure in ("output_tokens_per_s", "preemptions")
                    }
                    for name in options.kinds.split(",")
                    if any(one["kind"] == name for one in report["runs"])
                }
                options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["medians"], indent=1))


if __name__ == "__main__":
    main()
