"""Servers under load: a TidePipe router over gRPC, or any OpenAI-compatible server over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grpc
import httpx

from tidepipe.client.requests import check_endpoint, make_request
from tidepipe.client.retry import is_loss
from tidepipe.client.secured import no_answer
from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import inference_pb2_grpc
from tidepipe_common.codec.sampling import finish_from_wire
from tidepipe_common.errors import ConfigError, UnavailableError
from tidepipe_common.openai.answers import FINISH_REASONS
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import from_rpc_error
from tidepipe_common.types.request import ChatTurn
from tidepipe_common.types.sampling import SamplingParams
from workloads.loadgen.outcome import Outcome
from workloads.loadgen.requests import LoadRequest, is_chat

CONNECT_TIMEOUT_S = 10.0
CONTEXT_UNKNOWN = 4096
VOCABULARY_UNKNOWN = 32_000

CUT = "the answer was cut"

Clock = Callable[[], float]


class Target(Protocol):
    """Sends requests and never retries: a refusal is a result."""

    model: str
    context_length: int
    vocab_size: int

    async def prepare(self) -> None:
        """Connect, and learn what is served. UnavailableError if nobody answers."""
        ...

    async def send(self, request: LoadRequest, outcome: Outcome, clock: Clock, timeout_s: float) -> None:
        """Fill in the outcome; errors go there too."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class GrpcTarget:
    """A router. targets: (TTFT, TPOT) in milliseconds, sent with each request."""

    def __init__(self, endpoint: str, targets: tuple[float, float] | None) -> None:
        self.model = ""
        self.context_length = CONTEXT_UNKNOWN
        self.vocab_size = VOCABULARY_UNKNOWN
        self._endpoint = check_endpoint(endpoint)
        self._ttft_ms = None if targets is None else targets[0]
        self._tpot_ms = None if targets is None else targets[1]
        self._channel = open_channel(endpoint)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    async def prepare(self) -> None:
        """See Target."""
        try:
            reply = await self._stub.ListModels(pb.ListModelsRequest(), timeout=CONNECT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if not is_loss(error):
                raise from_rpc_error(error) from error
            raise UnavailableError(await asyncio.to_thread(no_answer, self._endpoint, None)) from error
        if not reply.models:
            raise UnavailableError(f"the router at {self._endpoint} has no instance")
        served = reply.models[0]
        self.model, self.context_length = served.name, served.context_length
        self.vocab_size = served.vocab_size

    async def send(self, request: LoadRequest, outcome: Outcome, clock: Clock, timeout_s: float) -> None:
        """See Target."""
        sampling = SamplingParams(temperature=0.0, max_tokens=request.output_tokens, ignore_eos=True)
        wanted = make_request(request.prompt, sampling, ttft_ms=self._ttft_ms, tpot_ms=self._tpot_ms)
        wanted.disconnect_grace_ms = 0
        try:
            call = self._stub.Generate(pb.GenerateRequest(request=wanted), timeout=timeout_s)
            reason = None
            async for message in call:
                delta = message.delta
                reason = finish_from_wire(delta.finish_reason)
                if delta.token_ids:
                    outcome.arrivals.append((clock(), len(delta.token_ids)))
                    outcome.output_tokens += len(delta.token_ids)
                    if request.followed:
                        outcome.token_ids += delta.token_ids
                outcome.error = delta.error or outcome.error
            if reason is None or not reason.whole:
                outcome.error = outcome.error or CUT
        except grpc.aio.AioRpcError as error:
            outcome.rejected = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            outcome.error = error.details() or error.code().name

    async def close(self) -> None:
        """See Target."""
        await self._channel.close()


class HttpTarget:
    """/v1/completions, and /v1/chat/completions for conversations. url: up to and without /v1.

    headers: of each request, such as an API key. extra: further fields of each body.
    """

    def __init__(self, url: str, model: str, headers: Mapping[str, str], extra: Mapping[str, Any]) -> None:
        self.model = model
        self.context_length = CONTEXT_UNKNOWN
        self.vocab_size = VOCABULARY_UNKNOWN
        self._url = url.rstrip("/").removesuffix("/v1")
        if not self._url.startswith(("http://", "https://")):
            raise ConfigError(f"--url must begin with http:// or https://, got {url!r}")
        self._extra = dict(extra)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(headers=dict(headers), limits=limits, trust_env=False)

    async def prepare(self) -> None:
        """See Target. The first model listed, unless one was named."""
        try:
            reply = await self._client.get(f"{self._url}/v1/models", timeout=CONNECT_TIMEOUT_S)
            reply.raise_for_status()
            models = reply.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise UnavailableError(f"{self._url}/v1/models does not answer: {error}") from error
        served = next((one for one in models if self.model in ("", one["id"])), None)
        if served is None:
            raise ConfigError(f"{self._url} does not serve {self.model or 'any model'}")
        self.model = served["id"]
        self.context_length = int(served.get("max_model_len") or CONTEXT_UNKNOWN)

    async def send(self, request: LoadRequest, outcome: Outcome, clock: Clock, timeout_s: float) -> None:
        """See Target."""
        path = "/v1/chat/completions" if is_chat(request.prompt) else "/v1/completions"
        body = {
            "model": self.model,
            **_prompt(request),
            "max_tokens": request.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"return_token_ids": True} if request.followed else {}),
            **self._extra,
        }
        try:
            async with self._client.stream("POST", self._url + path, json=body, timeout=timeout_s) as reply:
                if reply.status_code != 200:
                    outcome.rejected = reply.status_code in (429, 503)
                    said = (await reply.aread())[:200].decode(errors="replace")
                    outcome.error = f"HTTP {reply.status_code}: {said}"
                    return
                done = False
                async for line in reply.aiter_lines():
                    if line == "data: [DONE]":
                        done = True
                    elif line.startswith("data: "):
                        _take(json.loads(line.removeprefix("data: ")), outcome, clock())
                if not done:
                    outcome.error = outcome.error or CUT
        except (httpx.HTTPError, ValueError) as error:
            outcome.error = f"{type(error).__name__}: {error}"

    async def close(self) -> None:
        """See Target."""
        await self._client.aclose()


def _prompt(request: LoadRequest) -> dict[str, Any]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return {"prompt": prompt}
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt if isinstance(turn, ChatTurn)]
    return {"messages": turns} if turns else {"prompt": list(prompt)}


def _take(chunk: dict[str, Any], outcome: Outcome, now: float) -> None:
    """One event of the stream. Without token ids in it, a chunk is taken for one token."""
    if "error" in chunk:
        outcome.error = str(chunk["error"].get("message", chunk["error"]))
        return
    for choice in chunk.get("choices") or ():
        if choice.get("finish_reason") not in (None, *FINISH_REASONS):
            outcome.error = CUT
        if choice.get("token_ids"):
            outcome.token_ids += choice["token_ids"]
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        tokens = len(choice["token_ids"]) if choice.get("token_ids") else int(bool(text))
        if tokens:
            outcome.arrivals.append((now, tokens))
            outcome.output_tokens += tokens
    usage = chunk.get("usage")
    if usage and not chunk.get("choices"):
        outcome.output_tokens = usage["completion_tokens"]
