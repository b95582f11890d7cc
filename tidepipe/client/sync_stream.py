"""The synchronous stream of one request, over as many calls as it takes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self

import grpc

from tidepipe.client.errors import StreamGapError
from tidepipe.client.retry import CANCEL_TIMEOUT_S
from tidepipe.client.session import GenerationSession
from tidepipe.client.types import StreamEvent
from tidepipe.v1 import inference_pb2, inference_pb2_grpc
from tidepipe_common.errors import UnavailableError


class Abort:
    """Lets another thread end a stream."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._asked = threading.Event()
        self._call: Any = None

    def ask(self) -> None:
        """The thread that iterates gets UnavailableError soon."""
        self._asked.set()
        if self._call is not None:
            self._call.cancel()

    @property
    def asked(self) -> bool:
        """True once `ask` was called."""
        return self._asked.is_set()

    def watch(self, call: Any) -> None:
        """The call to end when asked."""
        self._call = call
        if self.asked:
            call.cancel()

    def wait(self, seconds: float) -> None:
        """Sleep, but not longer than until asked."""
        self._asked.wait(seconds)


class Stream:
    """Iterate over it; leaving early (break, `close`, leaving the context) cancels the request."""

    def __init__(
        self,
        session: GenerationSession,
        stub: inference_pb2_grpc.InferenceServiceStub,
        active: set[Abort],
    ) -> None:
        self.request_id = session.request_id
        self.abort = Abort(session.request_id)
        # A generator of its own, without a reference to this object: when a caller's `break` drops the
        # stream, the generator is closed, and that cancels the request.
        self._events = _events(session, stub, self.abort, active)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamEvent:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream; if the answer is not complete, the request is cancelled."""
        self._events.close()


def _events(
    session: GenerationSession,
    stub: inference_pb2_grpc.InferenceServiceStub,
    abort: Abort,
    active: set[Abort],
) -> Generator[StreamEvent, None, None]:
    active.add(abort)
    called = False
    try:
        while not session.finished:
            if abort.asked:
                raise UnavailableError("the client was closed")
            request, timeout = session.next_call()
            call = stub.Generate(request, timeout=timeout, metadata=session.metadata)
            called = True
            abort.watch(call)
            failure: grpc.RpcError | StreamGapError | None = None
            try:
                for response in call:
                    event = session.accept(response.delta)
                    if event is not None:
                        yield event
            except (grpc.RpcError, StreamGapError) as error:
                failure = error
            finally:
                call.cancel()  # nothing happens if it has ended
            if not session.finished and not abort.asked:
                abort.wait(session.wait_after(failure))
    finally:
        active.discard(abort)
        if called and session.needs_cancel:
            # ValueError: the channel is closed; a client that closes has cancelled all that it had.
            with contextlib.suppress(grpc.RpcError, ValueError):
                stub.Cancel(
                    inference_pb2.CancelRequest(request_ids=[session.request_id]), timeout=CANCEL_TIMEOUT_S
                )
