"""Many prompts at once with asyncio, results as they finish: async_many.py --endpoint HOST:PORT"""

from __future__ import annotations

import argparse
import asyncio

import tidepipe

COUNTRIES = ("France", "Japan", "Kenya", "Peru", "Italy", "Norway", "Egypt", "Chile", "India", "Canada")


async def main(endpoint: str, concurrency: int) -> None:
    """Ask all questions, at most `concurrency` at a time."""
    questions = [[{"role": "user", "content": f"What is the capital of {name}?"}] for name in COUNTRIES]
    async with await tidepipe.AsyncClient.connect(endpoint) as client:
        results = client.generate_batch(questions, concurrency=concurrency, max_tokens=24, temperature=0)
        async for result in results:
            # One that fails does not end the others.
            text = result.completion.text.strip() if result.completion else f"failed: {result.error}"
            print(f"{COUNTRIES[result.index]}: {text}")
        status = await client.status()
        print(f"{status.finished} requests answered since the router started")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True, metavar="HOST:PORT", help="`grpc=` of `tidepipe up`")
    parser.add_argument("--concurrency", type=int, default=8)
    options = parser.parse_args()
    asyncio.run(main(options.endpoint, options.concurrency))
