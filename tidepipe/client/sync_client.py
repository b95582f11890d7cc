"""The synchronous client: the same calls as the asynchronous one, on gRPC's own threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from tidepipe.client.async_client import CONTROL_TIMEOUT_S, DEFAULT_TIMEOUT_S
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
from tidepipe.client.sync_batch import collect, run_batch
from tidepipe.client.sync_stream import Abort, Stream
from tidepipe.client.types import BatchItem, BatchResult, Completion, Conversation, ModelInfo, Prompt
from tidepipe.client.wire import message_of, models_from_wire
from tidepipe.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from tidepipe_common.errors import TidePipeError, UnavailableError
from tidepipe_common.rpc.channel import open_sync_channel
from tidepipe_common.rpc.status import translated
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.types.request import ANY_TOOL
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.tool_choice import ToolChoice

DEFAULT_CONCURRENCY = 32


class Client:
    """Talks to a TidePipe router; safe to share between threads. A context manager, or use `close`.

    Made like this it also waits for a router that is yet to come, as long as each request may take; `connect`
    says at once if there is none. timeout: seconds that a request may take if the call names no other.
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
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._active: set[Abort] = set()
        self._channel = open_sync_channel(endpoint, credentials)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)

    @classmethod
    def connect(
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
            grpc.channel_ready_future(client._channel).result(connect_timeout)
        except grpc.FutureTimeoutError as error:
            client.close()
            raise UnavailableError(no_answer(endpoint, credentials)) from error
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is still running and close the connection."""
        active = tuple(self._active)
        for abort in active:
            abort.ask()
        if active:
            with contextlib.suppress(TidePipeError, ValueError):
                self.cancel(*(abort.request_id for abort in active))
        self._channel.close()

    def generate(
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
        return collect(
            self.stream(
                prompt,
                sampling,
                model=model,
                timeout=timeout,
                request_id=request_id,
                **{"piece_gap_ms": WHOLE_ANSWER_GAP_MS, **parameters},
            )
        )

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
    ) -> Stream:
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
        session = GenerationSession(
            request, timeout_s=self._timeout if timeout is None else timeout, policy=self._retry
        )
        return Stream(session, self._inference, self._active)

    def chat(
        self, messages: Conversation, sampling: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """Answer a conversation, rendered with the model's own template; options as `generate`."""
        return self.generate(messages, sampling, **options)

    def stream_chat(
        self, messages: Conversation, sampling: SamplingParams | None = None, **options: Any
    ) -> Stream:
        """Answer a conversation piece by piece; options as `stream`."""
        return self.stream(messages, sampling, **options)

    def generate_batch(
        self,
        prompts: Iterable[Prompt | BatchItem],
        sampling: SamplingParams | None = None,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Any,
    ) -> Iterator[BatchResult]:
        """Answer many prompts, at most `concurrency` at a time; results come as they finish.

        `prompts` is read as places become free, so it may be endless. A prompt that fails gives a result
        with `error`; the others go on. options as `generate`; the timeout is per prompt. For hundreds at
        a time take AsyncClient: here each prompt in flight occupies a thread.
        """

        def start(item: Prompt | BatchItem) -> Stream:
            if isinstance(item, BatchItem):
                return self.stream(
                    item.prompt, item.sampling or sampling, request_id=item.request_id, **options
                )
            return self.stream(item, sampling, **options)

        return run_batch(prompts, start, concurrency)

    def cancel(self, *request_ids: str) -> int:
        """End requests; how many were still running.

        Their streams finish with FinishReason.CANCELLED; who waits for the whole gets RequestCancelledError.
        """
        with translated():
            reply = self._inference.Cancel(
                message_of(inference_pb2.CancelRequest, request_ids=request_ids), timeout=CONTROL_TIMEOUT_S
            )
        return reply.cancelled

    def models(self) -> list[ModelInfo]:
        """The served models."""
        with translated():
            return models_from_wire(
                self._inference.ListModels(inference_pb2.ListModelsRequest(), timeout=CONTROL_TIMEOUT_S)
            )

    def status(self) -> ClusterStatus:
        """How the cluster stands."""
        with translated():
            return status_from_wire(
                self._admin.GetClusterStatus(admin_pb2.GetClusterStatusRequest(), timeout=CONTROL_TIMEOUT_S)
            )


def connect(
    endpoint: str,
    *,
    timeout: float = DEFAULT_TIMEOUT_S,
    retry: RetryPolicy | None = None,
    credentials: Credentials | None = None,
) -> Client:
    """A synchronous client for the router at HOST:PORT; UnavailableError if none answers there."""
    return Client.connect(endpoint, timeout=timeout, retry=retry, credentials=credentials)
