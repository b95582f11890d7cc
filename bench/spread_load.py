"""`python -m bench.spread_load ENDPOINT`: greedy answers to random prompts, all at once, from here.

Prints `flowing` when the first tokens have come, at the end a JSON line {"seconds", "tokens": [[ids]]}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import numpy as np

from common.sampling import SamplingParams
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.types import BatchItem

FLOWING_TOKENS = 200


def items(count: int, prompt: int, output: int, vocabulary: int) -> list[BatchItem]:
    """Prompts of up to `prompt` random tokens, answers of up to `output`."""
    chance = np.random.default_rng(5)
    return [
        BatchItem(
            chance.integers(100, vocabulary, size=int(chance.integers(prompt // 8, prompt))).tolist(),
            SamplingParams(
                temperature=0, max_tokens=int(chance.integers(output // 3, output)), ignore_eos=True
            ),
        )
        for _ in range(count)
    ]


async def answer_all(endpoint: str, batch: list[BatchItem]) -> list[list[int]]:
    """The output token ids of each."""
    seen = 0

    async def one(client: AsyncClient, item: BatchItem) -> list[int]:
        nonlocal seen
        tokens: list[int] = []
        async with client.stream(item.prompt, item.sampling) as stream:
            async for event in stream:
                tokens.extend(event.token_ids)
                before, seen = seen, seen + len(event.token_ids)
                if before < FLOWING_TOKENS <= seen:
                    print("flowing", flush=True)
        return tokens

    async with AsyncClient(endpoint) as client:
        return await asyncio.gather(*(one(client, item) for item in batch))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint", metavar="HOST:PORT")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=120, help="tokens at most")
    parser.add_argument("--output", type=int, default=60, help="tokens at most")
    parser.add_argument("--vocabulary", type=int, default=49_000)
    options = parser.parse_args()
    batch = items(options.requests, options.prompt, options.output, options.vocabulary)
    begin = time.monotonic()
    tokens = asyncio.run(answer_all(options.endpoint, batch))
    print(json.dumps({"seconds": time.monotonic() - begin, "tokens": tokens}))


if __name__ == "__main__":
    main()
