"""A client with many conversations at an OpenAI-compatible server: what it sends, gets, and waits for."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx

from bench.cores import Cores
from bench.peers.children import PeerError
from bench.prefix_workloads import Turn, Workload

TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Answer:
    """ttft_s: 0 if it was not streamed. cached_tokens: of the prompt, not computed; 0 if nobody says so."""

    tokens: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    ttft_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """A workload's run, from the first request to the last answer. Medians of the time to the first token.

    system_cpu_s: the system's processor time, which a busy machine changes least. others_cores: what others'
    processes kept busy meanwhile; stolen_cores: what the host took away.
    """

    seconds: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    ttft_first_s: float
    ttft_later_s: float
    client_cpu_s: float
    system_cpu_s: float
    others_cores: float
    stolen_cores: float

    @property
    def total_tokens_per_s(self) -> float:
        """Prompt and output tokens, whether computed or not."""
        return (self.prompt_tokens + self.output_tokens) / self.seconds


class Server:
    """One URL, with the connections to it."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=TIMEOUT_S, trust_env=False)
        self._model = ""

    async def __aenter__(self) -> Server:
        self._model = (await self._http.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, prompt: Sequence[int], answer: int, *, streamed: bool) -> Answer:
        """One request, greedy, of exactly `answer` tokens; PeerError if it fails or is too short."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": answer,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        sent = time.monotonic()
        try:
            if streamed:
                tokens, usage, first = await self._stream(body)
            else:
                reply = (await self._http.post("/v1/completions", json=body)).raise_for_status().json()
                tokens, usage, first = reply["choices"][0]["token_ids"], reply["usage"], sent
        except httpx.HTTPStatusError as error:
            said = (await error.response.aread())[:300]
            raise PeerError(f"HTTP {error.response.status_code}: {said!r}") from error
        except httpx.HTTPError as error:
            raise PeerError(f"{type(error).__name__}: {error}") from error
        if len(tokens) != answer:
            raise PeerError(f"an answer of {len(tokens)} tokens where {answer} were asked for")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        now = time.monotonic()
        return Answer(tuple(tokens), len(prompt), cached, first - sent, now - sent)

    async def _stream(self, body: dict[str, Any]) -> tuple[list[int], dict[str, Any], float]:
        tokens: list[int] = []
        usage: dict[str, Any] = {}
        first = 0.0
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self._http.stream("POST", "/v1/completions", json=body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                for choice in chunk.get("choices") or ():
                    if new := choice.get("token_ids"):
                        first = first or time.monotonic()
                        tokens += new
                usage = chunk.get("usage") or usage
        return tokens, usage, first


async def converse(server: Server, turns: Sequence[Turn], *, streamed: bool) -> list[Answer]:
    """A conversation: each prompt is all that was said before, by both, and what the turn adds."""
    said: list[int] = []
    answers = []
    for turn in turns:
        said += turn.tokens
        answers.append(await server.ask(said, turn.answer, streamed=streamed))
        said += answers[-1].tokens
    return answers


async def run(workload: Workload, urls: Sequence[str]) -> Figures:
    """All conversations at once; the n-th one with the n-th server, again and again round."""
    failure: BaseExceptionGroup[PeerError] | None = None
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Server(url)) for url in urls]
        before, began = Cores.now(), time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(converse(servers[n % len(servers)], turns, streamed=workload.streamed))
                    for n, turns in enumerate(workload.conversations)
                ]
        except* PeerError as errors:
            failure = errors
        seconds = time.monotonic() - began
        used = Cores.now() - before
    if failure is not None:
        raise PeerError(f"{workload.name}: {failure.exceptions[0]}")
    chats = [task.result() for task in tasks]
    answers = [answer for chat in chats for answer in chat]
    later = [answer.ttft_s for chat in chats for answer in chat[1:]]
    return Figures(
        seconds=round(seconds, 3),
        prompt_tokens=sum(one.prompt_tokens for one in answers),
        output_tokens=sum(len(one.tokens) for one in answers),
        cached_tokens=sum(one.cached_tokens for one in answers),
        ttft_first_s=round(statistics.median(chat[0].ttft_s for chat in chats), 3),
        ttft_later_s=round(statistics.median(later), 3) if later else 0.0,
        client_cpu_s=round(used.client, 2),
        system_cpu_s=round(used.ours - used.client, 2),
        others_cores=round(used.others / seconds, 3),
        stolen_cores=round(used.stolen / seconds, 3),
    )
