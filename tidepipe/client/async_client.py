"""The asynchronous client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from tidepipe.client.async_batch import run_batch
from tidepipe.client.async_stream import AsyncStream
from tidepipe.client.collect import Collector
from tidepipe.client.requests import (
    WHOLE_ANSWER_GAP_MS,
    check_endpoint,
    chosen_tool,
    make_request,
    make_sampling,
    template_options,
    tools_as_json,
)
from tidepipe.client.retry import RetryPolicy
from tidepipe.client.secured import no_answer
from tidepipe.client.session import GenerationSession
from tidepipe.client.status import ClusterStatus, status_from_wire
from tidepipe.client.types import BatchItem, BatchResult, Completion, Conversation, ModelInfo, Prompt
from tidepipe.client.wire import message_of, models_from_wire
from tidepipe.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    timeline_pb2,
    timeline_pb2_grpc,
)
from tidepipe_common.codec.timeline import add_piece
from tidepipe_common.errors import TidePipeError, UnavailableError
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import translated
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.types.request import ANY_TOOL
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.timeline import Timeline
from tidepipe_common.types.tool_choice import ToolChoice

DEFAULT_TIMEOUT_S = 600.0
DEFAULT_CONCURRENCY = 64
CONTROL_TIMEOUT_S = 10.0
TIMELINE_TIMEOUT_S = 60.0


class AsyncClient:
    """Talks to a TidePipe router; use it in one event loop, as a context manager or with `close`.

    timeout: seconds that a request may take if the call names no other.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """credentials: how to reach a secured cluster; None: what TIDEPIPE_API_KEY and TIDEPIPE_TLS_* say."""
        self.endpoint = check_endpoint(endpoint)
        self._credentials = credentials
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._channel: grpc.aio.Channel | None = None
        self._active: set[str] = set()

    @classmethod
    async def connect(
        cls,
        endpoint: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        connect_timeout: float = 10.0,
        credentials: Credentials | None = None,
    ) -> Self:
        """A client whose router answers; UnavailableError if it does not within `connect_timeout` seconds."""
        client = cls(endpoint, timeout=timeout, retry=retry, credentials=credentials)
        try:
            async with asyncio.timeout(connect_timeout):
                await client._open_channel().channel_ready()
        except TimeoutError as error:
            await client.close()
            why = await asyncio.to_thread(no_answer, endpoint, credentials, connect_timeout / 4)
            raise UnavailableError(why) from error
        except BaseException:
            await client.close()
            raise
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is still running and close the connection."""
        if self._channel is None:
            return
        if self._active:
            with contextlib.suppress(TidePipeError):
                await self.cancel(*self._active)
            self._active.clear()
        await self._channel.close()
        self._channel = None

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        model: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
        **parameters: Any,
    ) -> Completion:
        """Answer a prompt (text, token ids or a conversation).

        sampling, parameters: see SamplingParams; keywords win. timeout: seconds until
        DeadlineExceededError. request_id: your own unique id; two calls with one id are one request.
        """
        stream = self.stream(
            prompt,
            sampling,
            model=model,
            timeout=timeout,
            request_id=request_id,
            **{"piece_gap_ms": WHOLE_ANSWER_GAP_MS, **parameters},
        )
        collector = Collector(stream.request_id)
        async with stream:
            async for event in stream:
                collector.add(event)
        return collector.completion()

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        model: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
        skip_text: bool = False,
        ttft_ms: float | None = None,
        tpot_ms: float | None = None,
        piece_gap_ms: int = 0,
        cache_salt: str = "",
        priority: int = 0,
        background: bool = False,
        tools: Sequence[Mapping[str, Any] | str] = (),
        tool_choice: ToolChoice | str = ANY_TOOL,
        reasoning_effort: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> AsyncStream:
        """Answer a prompt piece by piece; parameters as `generate`. Leaving early cancels the request.

        skip_text: token ids only, which spares the service work. ttft_ms, tpot_ms: latency wanted until
        the first token and per token after it; the service's own targets if not given. piece_gap_ms: you
        need pieces no more often than this; the end comes at once. cache_salt: it shares computed beginnings
        only with requests that have the same one. priority: lower goes sooner, by a second for each.
        background: nobody waits for it, so that it runs in what other requests leave.

        Of a conversation: tools: functions that may be called, as OpenAI's API has them, or as JSON.
        tool_choice: `auto`, `none`, `required`, the name of the function that is to be called, or a
        ToolChoice. reasoning_effort: none, minimal, low, medium, high or xhigh. chat_template_kwargs: the
        chat template's own arguments.
        """
        request = make_request(
            prompt,
            make_sampling(sampling, parameters),
            request_id=request_id,
            model=model,
            skip_text=skip_text,
            ttft_ms=ttft_ms,
            tpot_ms=tpot_ms,
            piece_gap_ms=piece_gap_ms,
            cache_salt=cache_salt,
            priority=priority,
            background=background,
            tools=tools_as_json(tools),
            tool_choice=chosen_tool(tool_choice),
            template=template_options(reasoning_effort, chat_template_kwargs),
        )
        return self.stream_request(request, timeout=timeout)

    def stream_request(
        self, request: inference_pb2.InferenceRequest, *, timeout: float | None = None
    ) -> AsyncStream:
        """As `stream`, for a request that is in its wire form already."""
        session = GenerationSession(
            request, timeout_s=self._timeout if timeout is None else timeout, policy=self._retry
        )
        return AsyncStream(
            session, inference_pb2_grpc.InferenceServiceStub(self._open_channel()), self._active
        )

    async def chat(
        self, messages: Conversation, sampling: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """Answer a conversation, rendered with the model's own template; options as `generate`."""
        return await self.generate(messages, sampling, **options)

    def stream_chat(
        self, messages: Conversation, sampling: SamplingParams | None = None, **options: Any
    ) -> AsyncStream:
        """Answer a conversation piece by piece; options as `stream`."""
        return self.stream(messages, sampling, **options)

    def generate_batch(
        self,
        prompts: Iterable[Prompt | BatchItem] | AsyncIterable[Prompt | BatchItem],
        sampling: SamplingParams | None = None,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Any,
    ) -> AsyncIterator[BatchResult]:
        """Answer many prompts, at most `concurrency` at a time; results come as they finish.

        `prompts` is read as places become free, so it may be endless. A prompt that fails gives a result
        with `error`; the others go on. options as `generate`; the timeout is per prompt.
        """

        async def one(item: Prompt | BatchItem) -> Completion:
            if isinstance(item, BatchItem):
                return await self.generate(
                    item.prompt, item.sampling or sampling, request_id=item.request_id, **options
                )
            return await self.generate(item, sampling, **options)

        return run_batch(prompts, one, concurrency)

    async def cancel(self, *request_ids: str) -> int:
        """End requests; how many were still running.

        Their streams finish with FinishReason.CANCELLED; who waits for the whole gets RequestCancelledError.
        """
        stub = inference_pb2_grpc.InferenceServiceStub(self._open_channel())
        with translated():
            reply = await stub.Cancel(
                message_of(inference_pb2.CancelRequest, request_ids=request_ids), timeout=CONTROL_TIMEOUT_S
            )
        return reply.cancelled

    async def models(self) -> list[ModelInfo]:
        """The served models."""
        stub = inference_pb2_grpc.InferenceServiceStub(self._open_channel())
        with translated():
            reply = await stub.ListModels(inference_pb2.ListModelsRequest(), timeout=CONTROL_TIMEOUT_S)
        return models_from_wire(reply)

    async def status(self) -> ClusterStatus:
        """How the cluster stands."""
        stub = admin_pb2_grpc.AdminServiceStub(self._open_channel())
        with translated():
            reply = await stub.GetClusterStatus(
                admin_pb2.GetClusterStatusRequest(), timeout=CONTROL_TIMEOUT_S
            )
        return status_from_wire(reply)

    async def timelines(self, seconds: float = 0.0) -> list[Timeline]:
        """What each instance did in the last seconds, step by step; 0: as far back as it is kept.

        UnavailableError if an instance does not answer.
        """
        stub = timeline_pb2_grpc.TimelineServiceStub(self._open_channel())
        found: dict[str, Timeline] = {}
        with translated():
            request = message_of(timeline_pb2.GetTimelineRequest, seconds=seconds)
            async for piece in stub.GetTimeline(request, timeout=TIMELINE_TIMEOUT_S):
                if piece.error:
                    raise UnavailableError(f"{piece.instance_id} does not tell: {piece.error}")
                name = piece.instance_id
                add_piece(found.setdefault(name, Timeline(name, piece.stages)), piece)
        return list(found.values())

    def _open_channel(self) -> grpc.aio.Channel:
        # Late: a channel belongs to the loop that runs when it is made.
        if self._channel is None:
            self._channel = open_channel(self.endpoint, credentials=self._credentials)
        return self._channel
