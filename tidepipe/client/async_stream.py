"""The asynchronous stream of one request, over as many calls as it takes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

import grpc

from tidepipe.client.errors import StreamGapError
from tidepipe.client.retry import CANCEL_TIMEOUT_S
from tidepipe.client.session import GenerationSession
from tidepipe.client.types import StreamEvent
from tidepipe.v1 import inference_pb2, inference_pb2_grpc
from tidepipe_common.errors import UnavailableError


class AsyncStream:
    """Iterate over it; leaving early (break, `close`, leaving the context) cancels the request."""

    def __init__(
        self,
        session: GenerationSession,
        stub: inference_pb2_grpc.InferenceServiceAsyncStub,
        active: set[str],
    ) -> None:
        self.request_id = session.request_id
        # A generator of its own, without a reference to this object: when a caller's `break` drops the
        # stream, the event loop closes the generator, and that cancels the request.
        self._events = _events(session, stub, active)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        return await anext(self._events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the stream; if the answer is not complete, the request is cancelled."""
        await self._events.aclose()


async def _events(
    session: GenerationSession, stub: inference_pb2_grpc.InferenceServiceAsyncStub, active: set[str]
) -> AsyncGenerator[StreamEvent, None]:
    active.add(session.request_id)
    call: grpc.aio.UnaryStreamCall[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse] | None = (
        None
    )
    try:
        while not session.finished:
            request, timeout = session.next_call()
            call = stub.Generate(request, timeout=timeout, metadata=session.metadata)
            failure: grpc.RpcError | StreamGapError | None = None
            try:
                async for response in call:
                    event = session.accept(response.delta)
                    if event is not None:
                        yield event
            except (grpc.aio.AioRpcError, StreamGapError) as error:
                failure = error
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                raise UnavailableError("the client was closed") from None
            if not session.finished:
                call.cancel()
                await asyncio.sleep(session.wait_after(failure))
    finally:
        # A client that closes has cancelled all that it had, and its channel is gone.
        client_open = session.request_id in active
        active.discard(session.request_id)
        if call is not None and session.needs_cancel:
            call.cancel()
        if call is not None and session.needs_cancel and client_open:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await stub.Cancel(
                    inference_pb2.CancelRequest(request_ids=[session.request_id]), timeout=CANCEL_TIMEOUT_S
                )
