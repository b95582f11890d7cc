"""`python -m bench.misuse_inputs NAME HTTP GRPC SECONDS`: one kind of misuse of a cluster, for so long.

A process of its own, at the lowest priority: what it costs is not the cluster's doing. Prints one JSON
object: how many times it came, and what it was told (statuses, and the words of one refusal).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import httpx

from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import inference_pb2_grpc as pb_grpc
from tidepipe.v1 import router_pb2, router_pb2_grpc, sampling_pb2
from tidepipe_common.rpc.channel import open_channel

CALL_S = 30.0
SIDE_BY_SIDE = 5
HANGING = 996
"""Connections: as many as the usual descriptor limit of 1,024 has room for."""
PATTERNS = 24


class Misuse:
    """Calls a cluster in ways that nobody should, and notes what it says."""

    def __init__(self, http: str, rpc: str, ends: float) -> None:
        self.http = http
        self.rpc = rpc
        self.ends = ends
        self.said: Counter[str] = Counter()
        self.words = ""

    def note(self, status: str, words: str = "") -> None:
        """What it said."""
        self.said[status] += 1
        self.words = self.words or words[:200]

    @property
    def going(self) -> bool:
        """Is it still to go on?"""
        return time.monotonic() < self.ends

    async def post(self, path: str, body: object, headers: dict[str, str] | None = None) -> None:
        """One body again and again, several side by side."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})}

        async def one(client: httpx.AsyncClient) -> None:
            while self.going:
                try:
                    answer = await client.post(self.http + path, content=content, headers=sent)
                    self.note(str(answer.status_code), answer.text if answer.status_code >= 400 else "")
                except httpx.HTTPError as error:
                    self.note(type(error).__name__)
                    await asyncio.sleep(0.1)

        async with httpx.AsyncClient(trust_env=False, timeout=CALL_S) as client:
            await asyncio.gather(*(one(client) for _ in range(SIDE_BY_SIDE)))

    async def submit(self, *requests: pb.InferenceRequest) -> None:
        """The same over gRPC."""
        async with open_channel(self.rpc) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)

            async def one(request: pb.InferenceRequest) -> None:
                while self.going:
                    try:
                        await stub.Submit(pb.SubmitRequest(request=request), timeout=CALL_S)
                        self.note("OK")
                    except grpc.aio.AioRpcError as error:
                        self.note(error.code().name, error.details() or "")

            await asyncio.gather(*(one(request) for request in requests))

    async def batch(self, *bodies: dict[str, Any]) -> None:
        """As lines of a batch, which a restarted router would meet again."""
        lines = [
            {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", **body}}
            for i, body in enumerate(bodies)
        ]
        content = "\n".join(map(json.dumps, lines)).encode()
        async with httpx.AsyncClient(base_url=self.http, trust_env=False, timeout=CALL_S) as client:
            while self.going:
                files = {"file": ("in.jsonl", content)}
                upload = await client.post("/v1/files", files=files, data={"purpose": "batch"})
                if upload.status_code != 200:
                    self.note(str(upload.status_code), upload.text)
                    await asyncio.sleep(0.5)
                    continue
                job = {"input_file_id": upload.json()["id"], "endpoint": "/v1/completions"}
                made = await client.post("/v1/batches", json={**job, "completion_window": "24h"})
                batch = made.json()
                while self.going and batch.get("status") in ("validating", "in_progress", "finalizing"):
                    await asyncio.sleep(0.2)
                    batch = (await client.get(f"/v1/batches/{batch['id']}")).json()
                counts = batch.get("request_counts", {})
                self.note(f"{batch.get('status')}, {counts.get('failed')} failed lines")

    async def hang(self, first: bytes) -> None:
        """Many connections that begin, and never end what they say."""
        host, _, port = self.http.removeprefix("http://").partition(":")
        writers: list[asyncio.StreamWriter] = []
        while self.going:
            while len(writers) < HANGING and self.going:
                try:
                    _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 5)
                    writer.write(first)
                    writers.append(writer)
                    self.note("connected")
                except (OSError, TimeoutError) as error:
                    self.note(type(error).__name__)
                    await asyncio.sleep(0.1)
            for writer in writers:
                with contextlib.suppress(OSError):
                    writer.write(b"x")
            await asyncio.sleep(1.0)
            writers = [writer for writer in writers if not writer.is_closing()]

    async def pour(self, content: bytes) -> None:
        """Bytes, as fast as they are taken, over several connections."""
        host, _, port = self.http.removeprefix("http://").partition(":")

        async def one() -> None:
            while self.going:
                try:
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(content)
                    self.note(
                        (await asyncio.wait_for(reader.readline(), CALL_S)).decode().strip() or "hung up"
                    )
                    writer.close()
                except (OSError, TimeoutError) as error:
                    self.note(type(error).__name__)
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(one() for _ in range(SIDE_BY_SIDE)))

    async def impostor(self) -> None:
        """A process that says it is an instance, to be sent prompts."""
        async with open_channel(self.rpc) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            handle = router_pb2.InstanceHandle(instance_id="impostor", controller_address="127.0.0.1:9")
            request = router_pb2.RegisterInstanceRequest(handle=handle, lease_ms=5000)
            while self.going:
                try:
                    await stub.RegisterInstance(request, timeout=CALL_S)
                    self.note("OK")
                except grpc.aio.AioRpcError as error:
                    self.note(error.code().name, error.details() or "")
                await asyncio.sleep(0.05)

    async def other_site(self) -> None:
        """A web page of somebody else, in the browser of a user of this machine."""
        page = {
            "origin": "https://evil.example",
            "sec-fetch-site": "cross-site",
            "content-type": "text/plain",
        }
        await self.post("/v1/completions", {"prompt": "x", "max_tokens": 200}, page)


def prompt(**extra: object) -> dict[str, object]:
    """A completion that asks for little."""
    return {"prompt": "x", "max_tokens": 2, **extra}


def structured(schema: object) -> dict[str, object]:
    """A completion held to a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    return prompt(response_format=form)


def chance_text(characters: int) -> str:
    """Words that no tokenizer has met."""
    chance = random.Random(7)
    return "".join(chance.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(characters))


def empty_turns(count: int) -> pb.InferenceRequest:
    """Two bytes each, until they are read."""
    return pb.InferenceRequest(request_id="empty", chat=pb.Chat(messages=[pb.ChatMessage()] * count))


STOPS = prompt(n=3, stop_token_ids=[7] * 2_500_000)
BIAS = prompt(n=16, logit_bias={str(token): 1 for token in range(49_000)})
PRODUCT = structured({"allOf": [{"type": "string", "pattern": f"a.*{i}"} for i in range(PATTERNS)]})
ROLE = pb.InferenceRequest(
    request_id="role", chat=pb.Chat(messages=[pb.ChatMessage(role="r" * 8_000_000, content="x")])
)
IDS = pb.InferenceRequest(
    request_id="ids", text="x", sampling=sampling_pb2.SamplingParams(n=3, stop_token_ids=[7] * 4_000_000)
)
TURNS = {"messages": [{"role": "user", "content": ""}] * 200_000, "max_tokens": 2}
DEEP = b'{"prompt": "x", "tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

ENDLESS = "structures on a checkpoint without an end token"
TINY_CHUNKS = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1_000_000
)

KINDS: dict[str, Callable[[Misuse], Coroutine[Any, Any, None]]] = {
    "2.5 million stop token ids, n 3": lambda m: m.post("/v1/completions", STOPS),
    "stop token ids in lines of a batch": lambda m: m.batch(STOPS, prompt()),
    "49,000 biases, n 16": lambda m: m.post("/v1/completions", BIAS),
    "200,000 empty turns": lambda m: m.post("/v1/chat/completions", TURNS),
    "gRPC, a role of 8 MB, 4 million ids": lambda m: m.submit(ROLE, IDS, ROLE, IDS),
    "gRPC, 4 million empty turns": lambda m: m.submit(*[empty_turns(4_000_000)] * 4),
    "integers by schema": lambda m: m.post("/v1/completions", structured({"type": "integer"})),
    "a product of 24 patterns": lambda m: m.post("/v1/completions", PRODUCT),
    "patterns in lines of a batch": lambda m: m.batch(PRODUCT, prompt()),
    "prompts of 2 MB": lambda m: m.post("/v1/completions", prompt(prompt=chance_text(2_000_000))),
    "model names of 8 MB": lambda m: m.post("/v1/completions", prompt(model="m" * 8_000_000)),
    "8 MB of JSON": lambda m: m.post("/v1/completions", prompt(x=[[1.5, "a"]] * 600_000)),
    "100,000 brackets deep": lambda m: m.post("/v1/completions", DEEP),
    "996 connections without an end of headers": lambda m: m.hang(b"GET / HTTP/1.1\r\nhost: x\r\nx"),
    "996 bodies that dawdle": lambda m: m.hang(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: 100000\r\n\r\n{"
    ),
    "bodies in chunks of one byte": lambda m: m.pour(TINY_CHUNKS),
    "another site's page": lambda m: m.other_site(),
    "an impostor registers": lambda m: m.impostor(),
}


def main() -> None:
    """Entry point."""
    os.nice(19)
    name, http, rpc, seconds = sys.argv[1:]
    misuse = Misuse(f"http://{http}", rpc, time.monotonic() + float(seconds))
    asyncio.run({**KINDS, ENDLESS: KINDS["integers by schema"]}[name](misuse))
    print(json.dumps({"times": misuse.said.total(), "said": misuse.said, "words": misuse.words}))


if __name__ == "__main__":
    main()
