"""Conversations that do not fit into the KV pool, with and without a second tier, in turn: `--help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.model_source import resolve_model
from tidepipe_common.types.sampling import SamplingParams


def scrape(run_dir: Path) -> dict[str, float]:
    """The instance's second tier, and what it computed."""
    figures: dict[str, float] = {}
    for group in json.loads((run_dir / "metrics-targets.json").read_text()):
        for address in group["targets"]:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
                text = reply.read().decode()
            pattern = r"^tidepipe_(kv_offload_\w+?|prefill_tokens)(?:_total)?\{.*\} (\S+)$"
            figures.update({name: float(value) for name, value in re.findall(pattern, text, re.M)})
    return figures


async def converse(options: argparse.Namespace, offload: str | None) -> dict[str, Any]:
    """All turns of all conversations, the next turn when the answer is there; only the turns are timed."""
    chance = np.random.default_rng(options.seed)

    def draw(count: int) -> list[int]:
        return [int(token) for token in chance.integers(100, 49_000, size=count)]

    starts = [draw(options.context) for _ in range(options.conversations)]
    turns = [[draw(options.turn) for _ in range(options.turns)] for _ in starts]
    greedy = SamplingParams(temperature=0, max_tokens=options.answer, ignore_eos=True)
    with tempfile.TemporaryDirectory() as folder:
        config = ClusterConfig(
            model=str(resolve_model("smollm2-135m")),
            stages=options.stages,
            dtype=options.dtype,
            quantization=options.quantization,
            kv_blocks=options.kv_blocks,
            kv_offload=offload,
            metrics=True,
            run_dir=folder,
        )
        answers: list[list[int]] = [[] for _ in starts]
        firsts: list[float] = []
        async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:

            async def one(number: int) -> None:
                context = list(starts[number])
                for turn in turns[number]:
                    context += turn
                    begin = time.perf_counter()
                    completion = await client.generate(context, greedy)
                    firsts.append(time.perf_counter() - begin)
                    answers[number] += completion.token_ids
                    context += completion.token_ids

            begin = time.perf_counter()
            await asyncio.gather(*map(one, range(len(starts))))
            seconds = time.perf_counter() - begin
            figures = await asyncio.to_thread(scrape, Path(folder))
    return {
        "offload": offload,
        "seconds": seconds,
        "median_turn_s": statistics.median(firsts),
        "answers": answers,
        **figures,
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In turn, as machines drift."""
    rounds = []
    for _ in range(options.rounds):
        without, tier = await converse(options, None), await converse(options, options.kv_offload)
        same = without.pop("answers") == tier.pop("answers")
        ratio = without["seconds"] / tier["seconds"]
        rounds.append({"ratio": ratio, "same_answers": same, "off": without, "on": tier})
    ratio = statistics.median([one["ratio"] for one in rounds])
    return {"options": vars(options), "median_ratio": ratio, "rounds": rounds}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--context", type=int, default=1000, help="tokens before the first turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--turn", type=int, default=60, help="tokens that a user says")
    parser.add_argument("--answer", type=int, default=16)
    parser.add_argument("--kv-blocks", type=int, default=200, help="of which a conversation needs 60 to 80")
    parser.add_argument("--kv-offload", default="2GiB")
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
