"""Draws many answers to each of many prompts, on a local cluster, and keeps how long they were.

    python -m bench.length_draws PROMPTS.jsonl -o DRAWS.jsonl --model smollm2-135m --quantization int8

One line for each prompt as soon as all its answers are there: id, source, prompt, temperature, lengths in
tokens, and which of them max_tokens cut. Lines that are there already are not drawn again.
`bench.length_floor` says what any predictor could know from them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.types.sampling import FinishReason

MAX_TOKENS = 512
ANSWER_TIMEOUT_S = 7200.0


def stratified(prompts: list[dict[str, str]], count: int, seed: int) -> list[dict[str, str]]:
    """As many of each source as there are, up to equal parts; mixed, so that any beginning is mixed too."""
    chance = np.random.default_rng(seed)
    by_source: dict[str, list[dict[str, str]]] = {}
    for index in chance.permutation(len(prompts)).tolist():
        by_source.setdefault(prompts[index]["source"], []).append(prompts[index])
    chosen: list[dict[str, str]] = []
    for place in range(max(map(len, by_source.values()))):
        chosen += [of_source[place] for _, of_source in sorted(by_source.items()) if place < len(of_source)]
    return chosen[:count]


def drawn(path: Path) -> list[dict[str, Any]]:
    """Lines that were written; a last one that was cut off by a kill is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


async def draw(options: argparse.Namespace) -> None:
    """All prompts at all temperatures, in this order."""
    with options.prompts.open(encoding="utf-8") as source:
        prompts = [json.loads(line) for line in source]
    chosen = stratified(prompts, options.count, options.seed)
    there = {(one["id"], one["temperature"]) for one in drawn(options.output)}
    wanted = [
        (prompt, temperature)
        for temperature in options.temperatures
        for prompt in chosen
        if (prompt["id"], temperature) not in there
    ]
    print(f"{len(wanted)} prompts x {options.answers} answers to draw, {len(there)} are there", flush=True)
    config = ClusterConfig(
        model=options.model,
        quantization=options.quantization,
        max_running=options.running,
        log_level="error",
    )
    places = asyncio.Semaphore(max(1, options.running // options.answers) + 1)
    start, tokens = time.monotonic(), 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        with options.output.open("a", encoding="utf-8") as kept:

            async def one(number: int, prompt: dict[str, str], temperature: float) -> None:
                nonlocal tokens
                try:
                    found = await client.generate(
                        [{"role": "user", "content": prompt["prompt"]}],
                        temperature=temperature,
                        n=options.answers,
                        seed=options.seed + number,
                        max_tokens=MAX_TOKENS,
                        skip_text=True,
                        timeout=ANSWER_TIMEOUT_S,
                    )
                finally:
                    places.release()
                lengths = [len(answer.token_ids) for answer in found.answers]
                line = {
                    **{name: prompt[name] for name in ("id", "source", "prompt")},
                    "temperature": temperature,
                    "max_tokens": MAX_TOKENS,
                    "prompt_tokens": found.usage.prompt_tokens,
                    "lengths": lengths,
                    "capped": [answer.finish_reason is FinishReason.LENGTH for answer in found.answers],
                }
                kept.write(json.dumps(line) + "\n")
                kept.flush()
                tokens += sum(lengths)
                speed = tokens / (time.monotonic() - start)
                print(f"{number + 1}/{len(wanted)} T {temperature}: {speed:.0f} tokens/s", flush=True)

            async with asyncio.TaskGroup() as group:
                for number, (prompt, temperature) in enumerate(wanted):
                    await places.acquire()
                    group.create_task(one(number, prompt, temperature))
    print(f"{tokens} tokens, load average {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", type=Path, metavar="PROMPTS.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DRAWS.jsonl")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--count", type=int, default=400, help="prompts")
    parser.add_argument("--answers", type=int, default=16, help="to each prompt")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[1.0, 0.7])
    parser.add_argument("--running", type=int, default=192, help="answers under way at a time")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(draw(parser.parse_args()))


if __name__ == "__main__":
    main()
