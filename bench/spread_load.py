"""`python -m bench.spread_load ENDPOINT`: greedy answers to random prompts, all at once, from here.

Prints `flowing` when the first tokens have come, at the end a JSON line {"seconds", "longest_gap_s" (without
any token, after `flowing`), "tokens": [[ids] or null], "errors": [text]}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass

import numpy as np

from tidepipe.client.async_client import AsyncClient
from tidepipe.client.types import BatchItem
from tidepipe_common.types.sampling import SamplingParams

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


@dataclass(slots=True)
class Flow:
    """When tokens came."""

    seen: int = 0
    last: float = 0.0
    longest_gap_s: float = 0.0

    def add(self, tokens: int) -> None:
        """So many came now."""
        now = time.monotonic()
        before, self.seen = self.seen, self.seen + tokens
        if before < FLOWING_TOKENS <= self.seen:
            print("flowing", flush=True)
        elif before >= FLOWING_TOKENS:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last)
        self.last = now


async def answer_all(endpoint: str, batch: list[BatchItem]) -> dict[str, object]:
    """The output token ids of each, and how they came."""
    flow = Flow()

    async def one(client: AsyncClient, item: BatchItem) -> list[int]:
        tokens: list[int] = []
        async with client.stream(item.prompt, item.sampling) as stream:
            async for event in stream:
                tokens.extend(event.token_ids)
                flow.add(len(event.token_ids))
        return tokens

    begin = time.monotonic()
    async with AsyncClient(endpoint) as client:
        answers = await asyncio.gather(*(one(client, item) for item in batch), return_exceptions=True)
    return {
        "seconds": time.monotonic() - begin,
        "longest_gap_s": flow.longest_gap_s,
        "tokens": [None if isinstance(answer, BaseException) else answer for answer in answers],
        "errors": [repr(answer) for answer in answers if isinstance(answer, BaseException)],
    }


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
    print(json.dumps(asyncio.run(answer_all(options.endpoint, batch))))


if __name__ == "__main__":
    main()
