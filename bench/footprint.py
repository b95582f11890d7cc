"""How soon a cluster answers, what its processes hold, and whether that grows with the requests.

    python -m bench.footprint --model smollm2-135m --requests 2500 --rounds 3 --out footprint.json

Start-up: from asking for a cluster to its first token, several times. Memory: resident, of each process, as
requests are answered, `--concurrency` at a time, beside what a stage has in weights and KV blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.peers.children import end_children_when_ended
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.types import BatchItem
from tidepipe_common.types.sampling import SamplingParams

PROMPT_TOKENS, ANSWER_TOKENS = (8, 64), (4, 28)
VOCABULARY = range(100, 40_000)
SAMPLES = 5
"""Of the memory, at equal distances."""
MIB = 2**20


async def start_up_s(config: ClusterConfig) -> float:
    """Seconds to the first token of a cluster that was not there."""
    began = time.monotonic()
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        await client.generate([1, 2, 3], temperature=0, max_tokens=1, ignore_eos=True)
        return time.monotonic() - began


def items(requests: int) -> list[BatchItem]:
    """Short prompts and answers of mixed lengths, greedy."""
    chance = random.Random(3)
    return [
        BatchItem(
            [chance.choice(VOCABULARY) for _ in range(chance.randint(*PROMPT_TOKENS))],
            SamplingParams(temperature=0, max_tokens=chance.randint(*ANSWER_TOKENS), ignore_eos=True),
        )
        for _ in range(requests)
    ]


def resident_mib(cluster: LocalCluster) -> dict[str, int]:
    """Of each process."""
    return {
        child.name: psutil.Process(child.pid).memory_info().rss // MIB
        for child in cluster.children
        if child.pid is not None
    }


def held_by_stages(logs: Path) -> dict[str, dict[str, Any]]:
    """What each stage worker's log says of its configuration."""
    found = {}
    for log in sorted(logs.glob("*stage-worker*")):
        for line in log.read_text(encoding="utf-8").splitlines():
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("event") == "configured":
                names = ("layers", "weights_mib", "kv_blocks")
                found[log.name.removesuffix(".log")] = {name: said[name] for name in names}
    return found


async def growth(config: ClusterConfig, requests: int, concurrency: int) -> dict[str, Any]:
    """Memory after equal parts of the requests; fails if one of those does."""
    with tempfile.TemporaryDirectory() as folder:
        watched = config.model_copy(update={"run_dir": folder})
        async with LocalCluster(watched) as cluster, AsyncClient(cluster.grpc_address) as client:
            samples = {0: resident_mib(cluster)}
            part = -(-requests // SAMPLES)
            every = items(requests)
            for begin in range(0, requests, part):
                some = every[begin : begin + part]
                async for result in client.generate_batch(some, concurrency=concurrency):
                    result.unwrap()
                samples[begin + len(some)] = resident_mib(cluster)
        return {"stages": held_by_stages(Path(folder)), "resident_mib": samples}


def show(result: dict[str, Any]) -> None:
    """A table."""
    seconds = ", ".join(f"{one:.1f}" for one in result["start_up_s"])
    print(f"first token after {seconds} s")
    for name, stage in result["stages"].items():
        print(f"{name}: layers {stage['layers']}, {stage['weights_mib']} MiB of weights")
    samples = result["resident_mib"]
    print(f"| resident MiB after requests | {' | '.join(map(str, samples))} |")
    print(f"|---|{'---|' * len(samples)}")
    for name in next(iter(samples.values())):
        print(f"| {name} | {' | '.join(str(one.get(name, '')) for one in samples.values())} |")


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    config = ClusterConfig(model=options.model, stages=options.stages, quantization=options.quantization)
    start_ups = [await start_up_s(config) for _ in range(options.rounds)]
    return {"start_up_s": start_ups, **await growth(config, options.requests, options.concurrency)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("python -m bench.footprint", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--requests", type=int, default=2500)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="start-ups")
    parser.add_argument("--out", type=Path, default=None, help="JSON")
    options = parser.parse_args(arguments)
    end_children_when_ended()
    result = asyncio.run(run(options))
    show(result)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
