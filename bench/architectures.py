"""Are answers the library's own, whatever the architecture? Real clusters of tiny random models.

    python -m bench.architectures -o out.jsonl [NAME ..]

Each row is an architecture and a cluster of one to three stages: requests whose prompts begin alike, all at
once, in float32, in so few KV blocks that some are preempted, while one stage is killed. Greedy answers are
compared token for token with those of transformers' `generate`. Rows that the file has are not made again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from stage_worker.transformers_code import trial
from stage_worker.transformers_code.tiny import tiny_config
from tests.tiny_tokenizer import make_tokenizer
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.types import BatchItem
from tidepipe_common.types.sampling import SamplingParams

NAMES = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "olmoe",
    "granitemoe",
    "deepseek_v2",
    "deepseek_v3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "phi",
    "phi3",
    "phimoe",
    "gpt2",
    "gpt_neox",
    "gpt_bigcode",
    "starcoder2",
    "olmo",
    "olmo2",
    "olmo3",
    "cohere",
    "cohere2",
    "glm",
    "glm4",
    "glm4_moe",
    "stablelm",
    "opt",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "helium",
    "nemotron",
    "arcee",
    "apertus",
    "seed_oss",
    "minimax_m2",
    "hunyuan_v1_dense",
    "gptj",
    "llama4_text",
]
REQUESTS, TOKENS, KV_BLOCKS = 16, 64, 48
KILL_AFTER_S = 1.5
_LARGEST_TOKEN = 250


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one cluster. equal: of the answers. killed: stage that was; -1: all was over before."""

    architecture: str
    stages: int
    answers: int
    equal: int
    preemptions: int
    cached_tokens: int
    killed: int
    seconds: float


def prompts() -> list[list[int]]:
    """Some begin alike."""
    chance = np.random.default_rng(7)
    shared = chance.integers(2, _LARGEST_TOKEN, 50).tolist()
    return [
        [*(shared if number % 2 else []), *chance.integers(2, _LARGEST_TOKEN, 5 + 3 * number).tolist()]
        for number in range(REQUESTS)
    ]


def write_model(name: str, folder: Path) -> Any:
    """A tiny random model of an architecture with a tokenizer; the library's own model of it."""
    from transformers import CONFIG_MAPPING

    config = tiny_config(CONFIG_MAPPING[name]().to_dict(), name)
    model = trial.reference(config, 1)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return model


def expected(model: Any, asked: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the library generates."""
    rows = []
    for prompt in asked:
        ids = torch.tensor([prompt])
        done = model.generate(
            ids,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        rows.append(done[0, len(prompt) :].tolist())
    return rows


async def answers(
    model: Path, stages: int, asked: Sequence[Sequence[int]]
) -> tuple[list[list[int]], dict[str, int], int]:
    """All answers, what the instance says of itself, and the stage that was killed."""
    config = ClusterConfig(
        model=str(model),
        stages=stages,
        dtype="float32",
        model_code="transformers",
        kv_blocks=KV_BLOCKS,
        reserve=-1.0,  # more is let in than fits
        threads=1,
        log_level="error",
    )
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    items = [BatchItem(list(prompt), greedy) for prompt in asked]
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address, timeout=240) as client:
        killer = asyncio.create_task(_kill(client, stages - 1))
        results = [result async for result in client.generate_batch(items, concurrency=len(items))]
        killed = await killer if killer.done() else -1
        killer.cancel()
        status = (await client.status()).instances[0].status
    results.sort(key=lambda one: one.index)
    cached = sum(one.unwrap().usage.cached_tokens for one in results if one.error is None)
    said = {"preemptions": status.preemptions if status else 0, "cached_tokens": cached}
    return [list(one.unwrap().token_ids) if one.error is None else [] for one in results], said, killed


async def _kill(client: AsyncClient, stage: int) -> int:
    await asyncio.sleep(KILL_AFTER_S)
    status = (await client.status()).instances[0].status
    assert status is not None
    os.kill(status.stages[stage].pid, signal.SIGKILL)
    return stage


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--each", action="store_true", help="all numbers of stages for each, not in turn")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    lines = options.output.read_text().splitlines() if options.output.is_file() else []
    done = {(one["architecture"], one["stages"]) for one in map(json.loads, lines)}
    turns = itertools.cycle(options.stages)
    for name in options.names:
        counts = options.stages if options.each else [next(turns)]
        if all((name, stages) in done for stages in counts):
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            torch.set_num_threads(1)
            asked = prompts()
            wanted = expected(write_model(name, folder), asked)
            for stages in counts:
                began = time.monotonic()
                got, said, killed = asyncio.run(answers(folder, stages, asked))
                row = Row(
                    name,
                    stages,
                    len(got),
                    sum(mine == theirs for mine, theirs in zip(got, wanted, strict=True)),
                    killed=killed,
                    seconds=round(time.monotonic() - began, 1),
                    **said,
                )
                print(json.dumps(asdict(row)), flush=True)
                with options.output.open("a") as out:
                    out.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
