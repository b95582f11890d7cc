"""A server of somebody else's making, in the test's own process, whose answers are known."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class FakeOpenAi:
    """What it does can be changed between requests.

    text, tokenizer: its answers are `text`, cut into tokens. prompt: what all prompts begin with that are
    meant seriously. tells_tokens: as vLLM. llama_cpp: as that. die_after: tokens after which it drops the
    connection. noise: sent instead of an answer. busy: requests refused with 503 before one is taken.
    key: that it asks for.
    """

    tokenizer: Any
    text: str
    prompt: tuple[int, ...] = (1, 2, 3)
    tells_tokens: bool = True
    llama_cpp: bool = False
    die_after: int | None = None
    noise: bytes = b""
    busy: int = 0
    sick: bool = False
    pause_s: float = 0.0
    first_pause_s: float = 0.0
    key: str = ""
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        """The routes that matter."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/completions", self._complete, methods=["POST"]),
                *(self._of_llama_cpp() if self.llama_cpp else ()),
            ]
        )

    def _of_llama_cpp(self) -> tuple[Route, ...]:
        async def props(request: Request) -> Response:
            return JSONResponse({"default_generation_settings": {"n_ctx": 256}, "total_slots": 2})

        async def tokenize(request: Request) -> Response:
            text = (await request.json())["content"]
            return JSONResponse({"tokens": self.tokenizer.encode(text, add_special_tokens=True).ids})

        async def complete(request: Request) -> Response:
            body = await request.json()
            if body.get("repeat_last_n", 0) < 0:  # as its build 11434
                return JSONResponse({"error": {"message": "Value must be between 0 and 2147483647"}}, 400)
            prompt, base = body["prompt"], list(self.prompt)
            whole = self.tokenizer.encode(self.text, add_special_tokens=False).ids
            tokens = whole[len(prompt) - len(base) :][: body["n_predict"]]
            if prompt[: len(base)] != base:  # a look at who we are
                tokens = prompt[:1]
            return StreamingResponse(self._llama_events(body, tokens), media_type="text/event-stream")

        return (
            Route("/props", props),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/completion", complete, methods=["POST"]),
        )

    async def _llama_events(self, body: dict[str, Any], tokens: Sequence[int]) -> AsyncIterator[bytes]:
        """Half a character is not told of: its token neither."""
        told = ""
        for at, token in enumerate(tokens):
            if at == self.die_after:
                raise ConnectionAbortedError("as the test wants it")
            text = self.tokenizer.decode(list(tokens[: at + 1]))
            if not text.endswith("\ufffd"):
                piece = {"content": text[len(told) :], "tokens": [token], "tokens_predicted": at + 1}
                yield _event({**piece, "stop": False})
                told = text
        limit = len(tokens) == body["n_predict"]
        last = {"content": "", "tokens": [], "tokens_predicted": len(tokens), "stop": True}
        yield _event({**last, "stop_type": "limit" if limit else "eos"})

    async def _health(self, request: Request) -> Response:
        return Response(status_code=503 if self.sick else 200)

    async def _models(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no"}}, 401)
        return JSONResponse({"data": [{"id": "theirs", "max_model_len": 512}]})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        prompt, base = body["prompt"], list(self.prompt)
        if prompt[: len(base)] != base:  # a look at who we are
            ids = (
                self.tokenizer.encode(prompt, add_special_tokens=True).ids
                if isinstance(prompt, str)
                else prompt
            )
            return StreamingResponse(self._events(body, ids, [ids[0]]), media_type="text/event-stream")
        if self.busy:
            self.busy -= 1
            return JSONResponse({"error": {"message": "full"}}, 503)
        self.bodies.append(body)
        if self.noise:
            return StreamingResponse(self._noise(), media_type="text/event-stream")
        await asyncio.sleep(self.first_pause_s)
        whole = self.tokenizer.encode(self.text, add_special_tokens=False).ids
        tokens = whole[len(prompt) - len(base) :][: body["max_tokens"]]
        return StreamingResponse(self._events(body, prompt, tokens), media_type="text/event-stream")

    async def _noise(self) -> AsyncIterator[bytes]:
        while True:
            yield self.noise
            await asyncio.sleep(0)

    async def _events(
        self, body: dict[str, Any], prompt: Sequence[int], tokens: Sequence[int]
    ) -> AsyncIterator[bytes]:
        told = ""
        for at, token in enumerate(tokens):
            if at == self.die_after:
                raise ConnectionAbortedError("as the test wants it")
            text = self.tokenizer.decode(list(tokens[: at + 1]))
            text = told if text.endswith("\ufffd") else text  # half a character
            choice: dict[str, Any] = {"index": 0, "text": text[len(told) :]}
            told = text
            if self.tells_tokens and body.get("return_token_ids"):
                choice["token_ids"] = [token]
                if not at:
                    choice["prompt_token_ids"] = list(prompt)
            yield _event({"choices": [choice]})
            await asyncio.sleep(self.pause_s)
        reason = "length" if len(tokens) == body["max_tokens"] else "stop"
        last = {"index": 0, "text": "", "finish_reason": reason}
        yield _event({"choices": [{**last, "token_ids": []} if self.tells_tokens else last]})
        yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@contextlib.asynccontextmanager
async def serving(fake: FakeOpenAi) -> AsyncIterator[FakeOpenAi]:
    """Its address is in `url`; it is gone at the end."""
    server = uvicorn.Server(
        uvicorn.Config(fake.app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        fake.url = f"http://127.0.0.1:{port}"
        try:
            yield fake
        finally:
            server.should_exit = server.force_exit = True
