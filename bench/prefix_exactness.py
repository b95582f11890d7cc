"""Are answers the same with and without prefix reuse? Real clusters, requests with beginnings in common.

    python -m bench.prefix_exactness --model smollm2-135m -o out

Each row is a cluster: stages, data type, KV memory, and what is killed while it answers. Greedy answers are
compared token for token with those of an undisturbed cluster of one stage without reuse, of the same type.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.types import BatchItem
from tidepipe_common.types.sampling import SamplingParams

KILL_AFTER_S = 6.0


@dataclass(frozen=True, slots=True)
class Case:
    """One cluster. kv_blocks 0: ample. kill: stage that is killed -9 while it answers, or -1."""

    stages: int
    dtype: str
    reuse: bool = True
    kv_blocks: int = 0
    kill: int = -1


@dataclass(frozen=True, slots=True)
class Row:
    """What came of it. cached: prompt tokens that were found; of `prompt_tokens`."""

    case: Case
    answers: int
    changed: int
    failed: int
    preemptions: int
    cached_tokens: int
    prompt_tokens: int


CASES = [
    Case(stages, dtype, kv_blocks=blocks, kill=kill)
    for dtype in ("float32", "bfloat16")
    for stages, blocks, kill in ((1, 0, -1), (2, 0, -1), (3, 0, -1), (2, 150, -1), (2, 0, 1), (3, 150, 0))
]


def overlapping_prompts(count: int, seed: int) -> list[list[int]]:
    """Conversations of a few system prompts, cut anywhere: most begin as others do, some are equal."""
    chance = np.random.default_rng(seed)
    systems = [chance.integers(100, 49_000, size).tolist() for size in (300, 160, 37)]
    prompts: list[list[int]] = []
    for _ in range(count):
        base = prompts[int(chance.integers(len(prompts)))] if prompts and chance.random() < 0.5 else []
        base = base or systems[int(chance.integers(len(systems)))]
        cut = base[: int(chance.integers(1, len(base) + 1))] if chance.random() < 0.3 else base
        prompts.append([*cut, *chance.integers(100, 49_000, int(chance.integers(0, 80))).tolist()][:900])
    return prompts


async def run(model: str, case: Case, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], Row]:
    """The answers, and the row without its comparison."""
    config = ClusterConfig(
        model=model,
        stages=case.stages,
        dtype=case.dtype,
        kv_blocks=case.kv_blocks or None,
        prefix_caching="on" if case.reuse else "off",
        log_level="error",
    )
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    items = [BatchItem(prompt, greedy) for prompt in prompts]
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address, timeout=900) as client:
        killer = asyncio.create_task(_kill(client, case.kill))
        results = [result async for result in client.generate_batch(items, concurrency=64)]
        await killer
        status = (await client.status()).instances[0].status
    results.sort(key=lambda one: one.index)
    answers = [list(one.unwrap().token_ids) if one.error is None else [] for one in results]
    usages = [one.unwrap().usage for one in results if one.error is None]
    return answers, Row(
        case,
        len(results),
        0,
        sum(one.error is not None for one in results),
        status.preemptions if status else 0,
        sum(usage.cached_tokens for usage in usages),
        sum(usage.prompt_tokens for usage in usages),
    )


async def _kill(client: AsyncClient, stage: int) -> None:
    if stage < 0:
        return
    await asyncio.sleep(KILL_AFTER_S)
    status = (await client.status()).instances[0].status
    assert status is not None
    os.kill(status.stages[stage].pid, signal.SIGKILL)


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of rows")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    prompts = overlapping_prompts(options.requests, 5)
    rows: list[Row] = []
    references: dict[str, list[list[int]]] = {}
    for number, case in enumerate(CASES):
        if options.only and number not in options.only:
            continue
        if case.dtype not in references:
            plain = Case(1, case.dtype, reuse=False)
            references[case.dtype], row = asyncio.run(run(options.model, plain, prompts, options.tokens))
            print(json.dumps(asdict(row)), flush=True)
        answers, row = asyncio.run(run(options.model, case, prompts, options.tokens))
        changed = sum(one != other for one, other in zip(answers, references[case.dtype], strict=True))
        row = Row(**{**{name: getattr(row, name) for name in Row.__slots__}, "changed": changed})
        rows.append(row)
        print(json.dumps(asdict(row)), flush=True)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        report = {"model": options.model, "rows": [asdict(row) for row in rows]}
        (options.output / "prefix_exactness.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
