"""A real server of somebody else's making behind `tidepipe up --upstream`: what is promised of it is tried.

    python -m bench.peers setup vllm llama.cpp
    python -m bench.upstream_servers llama.cpp [--folder PEERS]
    python -m bench.upstream_servers vllm [--folder PEERS]

Each answer is compared with the server's own; the last trial kills the server (-9) in the midst of a stream
and starts it again. Prints a line for each trial; exits with 1 if one was not as promised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.peers.catalog import Server
from bench.peers.children import PeerError, child, end_children_when_ended
from bench.peers.llama_cpp import LlamaCpp
from bench.peers.places import Places
from bench.peers.vllm import Vllm
from controller.upstream.dialects import DIALECTS
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from launcher.ports import choose_port
from tidepipe_common.errors import TidePipeError
from tidepipe_common.model_source import cache_dir
from tidepipe_common.types.needs import LOGPROBS, STRUCTURES

HOST = "127.0.0.1"
START_S = 300.0
ASK_S = 200.0
BATCH = 24
LONG = 300
"""Tokens of the answer that is interrupted, after so many of them:"""
KILL_AFTER = 60
HALF = "\ufffd"
PROMPTS = (
    "The capital of France is",
    "The tide turns twice a day, because",
    "def fibonacci(n):",
    "你好，我叫",
    "Ein Fluß fließt über die Wiese, und",
    "😀 😃 😄",
    "SELECT name FROM",
    "Once upon a time",
)
"""Some are answered in characters of several tokens each."""
QUESTION = [{"role": "user", "content": "What is the tide? Answer in two sentences."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "inhabitants": {"type": "integer"}},
    "required": ["city", "inhabitants"],
    "additionalProperties": False,
}
Body = dict[str, Any]


class BrokenPromiseError(Exception):
    """Says what was seen instead."""


@dataclass(slots=True)
class Upstream:
    """The server, which can be killed and started again at the same place."""

    name: str
    server: Server
    log: Path
    port: int = field(default_factory=lambda: choose_port(HOST, 0))
    _stack: ExitStack = field(default_factory=ExitStack)
    _pid: int = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.port}"

    async def start(self) -> None:
        """Return when it answers."""
        self._stack.close()
        command, environment = self.server.serve_command(self.port), self.server.environment(0)
        process = self._stack.enter_context(child(command, self.log, env=environment))
        self._pid = process.pid
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as http, asyncio.timeout(START_S):
            while True:
                try:
                    if (await http.get("/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise PeerError(f"{self.name} ended; see {self.log}") from None
                await asyncio.sleep(0.3)

    def kill(self) -> None:
        """SIGKILL, to it and all that it started."""
        os.killpg(self._pid, signal.SIGKILL)

    def end(self) -> None:
        """At last."""
        self._stack.close()


@dataclass(slots=True)
class Trial:
    """Both doors. lacks: what the server cannot do."""

    upstream: Upstream
    ours: httpx.AsyncClient
    theirs: httpx.AsyncClient
    lacks: frozenset[str]

    async def ask(self, path: str, body: Body, status: int = 200) -> Body:
        """Our answer; BrokenPromiseError for another status."""
        response = await self.ours.post(path, json=body)
        if response.status_code != status:
            raise BrokenPromiseError(f"HTTP {response.status_code}: {response.text[:200]}")
        answer: Body = response.json()
        return answer

    async def own(self, prompt: str, tokens: int) -> tuple[str, list[int]]:
        """What the server itself says, greedy."""
        if self.upstream.name == "llama.cpp":
            body: Body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "return_tokens": True}
            answer = (await self.theirs.post("/completion", json=body | {"ignore_eos": True})).json()
            return answer["content"], answer["tokens"]
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
        answer = (await self.theirs.post("/v1/completions", json=body | {"ignore_eos": True})).json()
        return answer["choices"][0]["text"], answer["choices"][0]["token_ids"]

    async def events(self, path: str, body: Body) -> AsyncIterator[Body]:
        """A stream of ours, until its end."""
        async with self.ours.stream("POST", path, json={**body, "stream": True}) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event: Body = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise BrokenPromiseError(f"the stream ended: {event['error']}")
                    yield event


def _same(what: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise BrokenPromiseError(f"{what}: {got!r:.200} instead of {wanted!r:.200}")


def _completion(prompt: str, tokens: int, **more: Any) -> Body:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}


# -- trials -----------------------------------------------------------------------------------------


async def answers(trial: Trial) -> str:
    """Greedy answers have the server's own text; how many its very tokens, which not every dialect tells."""
    tokens = 0
    for prompt in PROMPTS:
        text, ids = await trial.own(prompt, 40)
        [choice] = (await trial.ask("/v1/completions", _completion(prompt, 40, return_token_ids=True)))[
            "choices"
        ]
        # Half a character at the end is not told by everybody.
        _same(f"after {prompt!r}", choice["text"].rstrip(HALF), text.rstrip(HALF))
        tokens += choice["token_ids"] == ids
    return f"{len(PROMPTS)} texts equal, {tokens} token for token"


async def chats(trial: Trial) -> str:
    """A stream has the text of the answer in one piece, and the same usage."""
    body = {"messages": QUESTION, "max_tokens": 60, "temperature": 0}
    whole = await trial.ask("/v1/chat/completions", body)
    said, pieces = "", 0
    usage: dict[str, int] = {}
    async for event in trial.events(
        "/v1/chat/completions", body | {"stream_options": {"include_usage": True}}
    ):
        for choice in event["choices"]:
            piece = choice["delta"].get("content") or ""
            said, pieces = said + piece, pieces + bool(piece)
        usage = event.get("usage") or usage
    _same("text", said, whole["choices"][0]["message"]["content"])
    for name in ("prompt_tokens", "completion_tokens"):
        _same(name, usage[name], whole["usage"][name])
    return f"{pieces} pieces, {usage['completion_tokens']} tokens"


async def endings(trial: Trial) -> str:
    """A stop string ends an answer before it; a seed draws the same again, another one something else."""
    text, _ = await trial.own(PROMPTS[0], 40)
    stop = text[30:36]
    [choice] = (await trial.ask("/v1/completions", _completion(PROMPTS[0], 40, stop=[stop])))["choices"]
    _same("text", choice["text"], text[: text.index(stop)])
    _same("reason", choice["finish_reason"], "stop")
    drawn = []
    for seed in (7, 7, 8):
        body = _completion(PROMPTS[7], 30, seed=seed) | {"temperature": 1.0}
        drawn.append((await trial.ask("/v1/completions", body))["choices"][0]["text"])
    _same("drawn again", drawn[1], drawn[0])
    if drawn[2] == drawn[0]:
        raise BrokenPromiseError("another seed draws the same")
    two = await trial.ask("/v1/completions", _completion(PROMPTS[7], 30, n=2) | {"temperature": 1.0})
    _same("answers", [choice["index"] for choice in two["choices"]], [0, 1])
    return "stop string, seeds, n = 2"


async def structures(trial: Trial) -> str:
    """A schema is held, or refused with a word why."""
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    body = {"messages": QUESTION, "max_tokens": 80, "temperature": 0, "response_format": form}
    if STRUCTURES in trial.lacks:
        return await _refused(trial, "/v1/chat/completions", body)
    answer = await trial.ask("/v1/chat/completions", body)
    value = json.loads(answer["choices"][0]["message"]["content"])
    _same("keys", sorted(value), sorted(SCHEMA["required"]))
    return f"{value}"


async def likelihoods(trial: Trial) -> str:
    """Log-probabilities come for each token, or are refused with a word why."""
    body = _completion(PROMPTS[0], 8, logprobs=2)
    if LOGPROBS in trial.lacks:
        return await _refused(trial, "/v1/completions", body)
    told = (await trial.ask("/v1/completions", body))["choices"][0]["logprobs"]
    _same("entries", len(told["token_logprobs"]), 8)
    return f"8, of the first {told['token_logprobs'][0]:.3f}"


async def _refused(trial: Trial, path: str, body: Body) -> str:
    error = (await trial.ask(path, body, 400))["error"]["message"]
    return f"400: {error}"


async def too_long(trial: Trial) -> str:
    """What exceeds the server's context is refused before it is asked."""
    return await _refused(trial, "/v1/completions", _completion(PROMPTS[0], 10_000_000))


async def batches(trial: Trial) -> str:
    """A batch is answered whole."""
    lines = [
        {
            "custom_id": f"{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": _completion(f"The number {number} is", 24),
        }
        for number in range(BATCH)
    ]
    text = "\n".join(map(json.dumps, lines))
    sent = await trial.ours.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", text.encode())}
    )
    batch = await trial.ask(
        "/v1/batches",
        {
            "input_file_id": sent.raise_for_status().json()["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        },
    )
    async with asyncio.timeout(ASK_S):
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(0.3)
            batch = (await trial.ours.get(f"/v1/batches/{batch['id']}")).json()
    _same("status", batch["status"], "completed")
    counts = batch["request_counts"]
    _same("completed", (counts["completed"], counts["failed"]), (BATCH, 0))
    output = (await trial.ours.get(f"/v1/files/{batch['output_file_id']}/content")).text.splitlines()
    _same("answers", sorted(json.loads(line)["custom_id"] for line in output), sorted(map(str, range(BATCH))))
    return f"{counts['completed']} of {counts['total']}"


async def death(trial: Trial) -> str:
    """Streams go on where they were when the server was killed (-9) and came back, with the same text."""
    bodies = [_completion(prompt, LONG, return_token_ids=True) for prompt in PROMPTS[:4]]
    undisturbed = await asyncio.gather(*(_streamed(trial, body) for body in bodies))
    begun = asyncio.Event()
    streams = [asyncio.create_task(_streamed(trial, body, begun)) for body in bodies]
    async with asyncio.timeout(ASK_S):
        await begun.wait()
        trial.upstream.kill()
        await trial.upstream.start()
        disturbed = await asyncio.gather(*streams)
    _same("tokens", [len(ids) for ids, _, _ in disturbed], [LONG] * len(bodies))
    same = sum(now[:2] == then[:2] for now, then in zip(disturbed, undisturbed, strict=True))
    _same("texts that are those without a fault", same, len(bodies))
    return f"{same} of {len(bodies)} streams equal, longest gap {max(gap for _, _, gap in disturbed):.1f} s"


async def _streamed(
    trial: Trial, body: Body, begun: asyncio.Event | None = None
) -> tuple[list[int], str, float]:
    """Tokens, text, and the longest time without either, seconds. begun: set once KILL_AFTER came."""
    ids: list[int] = []
    text, gap, last = "", 0.0, time.monotonic()
    async for event in trial.events("/v1/completions", body):
        now = time.monotonic()
        gap, last = max(gap, now - last), now
        for choice in event["choices"]:
            ids += choice.get("token_ids") or []
            text += choice["text"]
        if begun is not None and len(ids) >= KILL_AFTER:
            begun.set()
    return ids, text, gap


TRIALS: dict[str, Callable[[Trial], Awaitable[str]]] = {
    "answers as the server's own": answers,
    "chat, whole and streamed": chats,
    "stop strings, seeds, n": endings,
    "JSON schema": structures,
    "log-probabilities": likelihoods,
    "longer than its context": too_long,
    "batch": batches,
    "killed in mid-stream, started again": death,
}


# -- all of them ------------------------------------------------------------------------------------


def server_of(name: str, places: Places) -> Server:
    """Its settings: small enough for any machine; float32, as vLLM's answers depend on batches otherwise."""
    if name == "llama.cpp":
        return LlamaCpp(places, threads=1)
    settings = {"max_model_len": 2048, "max_num_batched_tokens": None}
    return Vllm(places, replicas=2, pipeline=1, dtype="float32", settings=settings)


@asynccontextmanager
async def before(upstream: Upstream, model: str, run_dir: Path) -> AsyncIterator[Trial]:
    """The server, with TidePipe before it."""
    try:
        await upstream.start()
        config = ClusterConfig(model=model, upstream=upstream.url, run_dir=str(run_dir))
        async with (
            LocalCluster(config) as cluster,
            httpx.AsyncClient(
                base_url=f"http://{cluster.http_address}", timeout=ASK_S, trust_env=False
            ) as ours,
            httpx.AsyncClient(base_url=upstream.url, timeout=ASK_S, trust_env=False) as theirs,
        ):
            yield Trial(upstream, ours, theirs, DIALECTS[upstream.name].lacks)
    finally:
        upstream.end()


async def run(options: argparse.Namespace) -> int:
    """How many trials failed."""
    places = Places(options.folder, options.model)
    failed = 0
    with tempfile.TemporaryDirectory() as run_dir:
        log = options.folder / f"upstream-{options.server}.log"
        upstream = Upstream(options.server, server_of(options.server, places), log)
        async with before(upstream, options.model, Path(run_dir)) as trial:
            for name, try_it in TRIALS.items():
                if options.only and name not in options.only:
                    continue
                try:
                    print(f"| {name} | {await try_it(trial)} |", flush=True)
                except (BrokenPromiseError, httpx.HTTPError, TimeoutError, KeyError, ValueError) as error:
                    failed += 1
                    print(f"| {name} | **{type(error).__name__}: {error}** |", flush=True)
    return failed


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("server", choices=("llama.cpp", "vllm"))
    parser.add_argument("--folder", type=Path, default=cache_dir() / "peers", help="environments, models")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", nargs="*", choices=list(TRIALS), help="these trials alone")
    options = parser.parse_args()
    end_children_when_ended()
    try:
        return 1 if asyncio.run(run(options)) else 0
    except (TidePipeError, PeerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    raise SystemExit(main())
