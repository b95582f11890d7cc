"""`python -m deploy.trial.load URL OUT.json`: greedy chat requests through the gateway, all at once.

With `--constant GRPC`: one after the other until SIGTERM, by clients of three kinds that never try again: the
SDK at GRPC, plain HTTP, and server-sent events.

Runs where the published ports are, with TIDEPIPE_API_KEY and TIDEPIPE_TLS_CA of the environment.
Writes {"seconds": s, "answers": [text or null], "errors": [text]}, and of constant load, where all questions
are the same one, {"asked": {kind: n}} besides.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from tidepipe.client.async_client import AsyncClient
from tidepipe.client.secured import client_credentials

WAIT_S = 400.0
APART_S = 0.35
QUESTIONS = (
    "Name {n} things that one can buy at a market, and say what each is good for.",
    "Tell a short story about {n} sailors.",
    "Explain to a child why the sky is blue, in {n} sentences.",
    "What would you cook for {n} guests? Describe the steps.",
)


def question(number: int, tokens: int) -> dict[str, Any]:
    """The body of a request."""
    text = QUESTIONS[number % len(QUESTIONS)].format(n=number + 2)
    return {
        "model": "tidepipe",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": tokens,
    }


def open_client(url: str, connections: int) -> httpx.AsyncClient:
    """A client of the gateway, with the key and the CA of the environment."""
    return httpx.AsyncClient(
        base_url=url,
        timeout=WAIT_S,
        limits=httpx.Limits(max_connections=connections),
        headers={"Authorization": f"Bearer {os.environ['TIDEPIPE_API_KEY']}"},
        verify=ssl.create_default_context(cafile=os.environ["TIDEPIPE_TLS_CA"]),
    )


async def ask(client: httpx.AsyncClient, number: int, tokens: int) -> str:
    """One answer; httpx.HTTPError if there is none."""
    reply = await client.post("/v1/chat/completions", json=question(number, tokens))
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


async def run(url: str, requests: int, tokens: int) -> dict[str, object]:
    """All requests at once; what came of them."""
    begin = time.monotonic()
    async with open_client(url, requests) as client:
        replies = await asyncio.gather(
            *(ask(client, number, tokens) for number in range(requests)), return_exceptions=True
        )
    return {
        "seconds": time.monotonic() - begin,
        "answers": [reply if isinstance(reply, str) else None for reply in replies],
        "errors": [repr(reply) for reply in replies if not isinstance(reply, str)],
    }


@contextlib.contextmanager
def until_sigterm() -> Iterator[asyncio.Event]:
    """An event that SIGTERM sets."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, event.set)
    try:
        yield event
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def by_events(client: httpx.AsyncClient, tokens: int) -> str:
    """One answer as server-sent events; RuntimeError if it does not come to its end."""
    pieces, last = [], ""
    body = {**question(0, tokens), "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            last = line or last
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                pieces += [choice["delta"].get("content") or "" for choice in event["choices"]]
    if last != "data: [DONE]":
        raise RuntimeError("the stream broke off")
    return "".join(pieces)


async def constant(url: str, grpc: str, tokens: int) -> dict[str, object]:
    """One question after the other by each kind of client, a little apart, until SIGTERM."""
    answers: list[str | None] = []
    errors: list[str] = []
    asked: Counter[str] = Counter()
    begin = time.monotonic()
    async with open_client(url, 64) as http, AsyncClient(grpc, credentials=client_credentials()) as sdk:

        async def by_sdk() -> str:
            messages = question(0, tokens)["messages"]
            return (await sdk.chat(messages, temperature=0, max_tokens=tokens)).text

        kinds: dict[str, Callable[[], Awaitable[str]]] = {
            "sdk": by_sdk,
            "http": lambda: ask(http, 0, tokens),
            "sse": lambda: by_events(http, tokens),
        }

        async def one(kind: str) -> None:
            asked[kind] += 1
            try:
                answers.append(await kinds[kind]())
            except Exception as error:
                answers.append(None)
                errors.append(f"{kind}: {error!r}")

        with until_sigterm() as ended:
            async with asyncio.TaskGroup() as group:
                while not ended.is_set():
                    for kind in kinds:
                        group.create_task(one(kind))
                        await asyncio.sleep(APART_S)
    return {"seconds": time.monotonic() - begin, "answers": answers, "errors": errors, "asked": asked}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--constant", default="", metavar="GRPC")
    options = parser.parse_args()
    if options.constant:
        result = asyncio.run(constant(options.url, options.constant, options.tokens))
    else:
        result = asyncio.run(run(options.url, options.requests, options.tokens))
    options.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
