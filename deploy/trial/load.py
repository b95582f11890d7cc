"""`python -m deploy.trial.load URL OUT.json`: greedy chat requests through the gateway, all at once.

Runs where the published ports are, with TIDEPIPE_API_KEY and TIDEPIPE_TLS_CA of the environment.
Writes {"seconds": s, "answers": [text or null], "errors": [text]}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import time
from pathlib import Path

import httpx

WAIT_S = 400.0
QUESTIONS = (
    "Name {n} things that one can buy at a market, and say what each is good for.",
    "Tell a short story about {n} sailors.",
    "Explain to a child why the sky is blue, in {n} sentences.",
    "What would you cook for {n} guests? Describe the steps.",
)


async def ask(client: httpx.AsyncClient, number: int, tokens: int) -> str:
    """One answer; httpx.HTTPError if there is none."""
    question = QUESTIONS[number % len(QUESTIONS)].format(n=number + 2)
    reply = await client.post(
        "/v1/chat/completions",
        json={
            "model": "tidepipe",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": tokens,
        },
    )
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


async def run(url: str, requests: int, tokens: int) -> dict[str, object]:
    """All requests at once; what came of them."""
    limits = httpx.Limits(max_connections=requests)
    begin = time.monotonic()
    async with httpx.AsyncClient(
        base_url=url,
        timeout=WAIT_S,
        limits=limits,
        headers={"Authorization": f"Bearer {os.environ['TIDEPIPE_API_KEY']}"},
        verify=ssl.create_default_context(cafile=os.environ["TIDEPIPE_TLS_CA"]),
    ) as client:
        replies = await asyncio.gather(
            *(ask(client, number, tokens) for number in range(requests)), return_exceptions=True
        )
    return {
        "seconds": time.monotonic() - begin,
        "answers": [reply if isinstance(reply, str) else None for reply in replies],
        "errors": [repr(reply) for reply in replies if not isinstance(reply, str)],
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    result = asyncio.run(run(options.url, options.requests, options.tokens))
    options.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
