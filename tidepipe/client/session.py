"""One request and where its answer stands, without any I/O: what to call next, what is new, when to give up.

The asynchronous and the synchronous client drive the same session, so they behave alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import grpc

from tidepipe.client.errors import DeadlineExceededError, RequestFailedError, StreamGapError
from tidepipe.client.retry import Backoff, RetryPolicy, is_loss, queue_full_wait_s
from tidepipe.client.trace import trace_metadata
from tidepipe.client.types import StreamEvent
from tidepipe.client.wire import check_seconds
from tidepipe.v1 import inference_pb2 as pb
from tidepipe_common.codec.inference import reading_from_wire
from tidepipe_common.codec.sampling import (
    finish_from_wire,
    logprobs_from_wire,
    prompt_logprobs_from_wire,
)
from tidepipe_common.dialects import Part, Reader, Reading, Words
from tidepipe_common.dialects.tools import Tools
from tidepipe_common.errors import UnavailableError
from tidepipe_common.rpc.status import from_rpc_error
from tidepipe_common.types.request import Usage
from tidepipe_common.types.sampling import FinishReason

CONNECTED_AFTER_S = 30.0
"""A call that lasted longer than any attempt to connect had reached the service, even if nothing came."""


class _Position:
    """What has been received of one answer."""

    def __init__(self) -> None:
        self.tokens = 0
        self.characters = 0
        self.prompt = 0
        self.finished = False
        self.reading: Reading | None = None
        self.reader: Reader | None = None

    def read(self, text: str, *, ended: bool) -> tuple[Part, ...]:
        """What this text, which comes next, consists of."""
        if self.reader is None:
            return (Words(text),) if text else ()
        return (*self.reader.feed(text), *(self.reader.end() if ended else ()))


class GenerationSession:
    """Feed it what the service sends; it cuts repeats, so that events have neither gap nor overlap."""

    def __init__(
        self,
        request: pb.InferenceRequest,
        *,
        timeout_s: float,
        policy: RetryPolicy,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.metadata = trace_metadata()
        self._request = request
        self._timeout_s = timeout_s = check_seconds("timeout", timeout_s)
        self._policy = policy
        self._clock = clock
        self._draw = draw
        self._backoff = Backoff(policy, draw)
        chat = request.chat
        self._tools = Tools(() if chat.tool_choice.mode == pb.ToolChoice.MODE_NONE else tuple(chat.tools))
        answers = max(1, request.sampling.n) * (1 + len(request.more_prompts))
        self._positions = [_Position() for _ in range(answers)]
        self._deadline = clock() + timeout_s
        self._call_began = clock()
        self._lost_since: float | None = None
        self._loss = ""
        self._refused = False

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self._request.request_id

    @property
    def finished(self) -> bool:
        """True if every answer is complete."""
        return all(position.finished for position in self._positions)

    @property
    def needs_cancel(self) -> bool:
        """True if the service may still be at work on it."""
        return not (self.finished or self._refused)

    def next_call(self) -> tuple[pb.GenerateRequest, float]:
        """What to send now, and the seconds that the call may take; DeadlineExceededError if none is left."""
        self._call_began = self._clock()
        left = self._deadline - self._call_began
        if left <= 0:
            raise self._too_late()
        resume = [
            pb.StreamPosition(
                index=index,
                tokens=position.tokens,
                characters=position.characters,
                prompt_positions=position.prompt,
            )
            for index, position in enumerate(self._positions)
            if position.tokens or position.characters or position.prompt
        ]
        return pb.GenerateRequest(request=self._request, resume=resume), left

    def accept(self, delta: pb.AnswerDelta) -> StreamEvent | None:
        """What is new in `delta`; None if nothing. StreamGapError if something before it is missing."""
        self._heard()
        if delta.index >= len(self._positions):
            raise RequestFailedError(f"the service sent answer {delta.index} of {len(self._positions)}")
        position = self._positions[delta.index]
        if position.finished:
            return None
        read = prompt_logprobs_from_wire(delta.prompt_logprobs)
        if delta.token_offset > position.tokens or delta.character_offset > position.characters:
            raise StreamGapError
        if read is not None:
            if read.first > position.prompt + 1:
                raise StreamGapError
            position.prompt = max(position.prompt, read.first - 1 + len(read))
        repeated = position.tokens - delta.token_offset
        token_ids = tuple(delta.token_ids[repeated:])
        logprobs = logprobs_from_wire(delta.logprobs[repeated:])
        text = delta.text[position.characters - delta.character_offset :]
        reason = finish_from_wire(delta.finish_reason)
        if delta.HasField("dialect") and position.characters == 0 and position.reader is None:
            position.reading = reading_from_wire(delta.dialect)
            if position.reading is not None:
                position.reader = position.reading.reader(self._tools)
        parts = position.read(text, ended=reason is not None)
        position.tokens += len(token_ids)
        position.characters += len(text)
        if reason is None:
            return (
                StreamEvent(
                    self.request_id,
                    delta.index,
                    text,
                    token_ids,
                    logprobs,
                    parts=parts,
                    prompt_logprobs=read,
                )
                if token_ids or text or read
                else None
            )
        position.finished = True
        if reason is FinishReason.DEADLINE:
            raise self._too_late()
        if reason is FinishReason.ERROR:
            raise RequestFailedError(delta.error or "the service could not finish the answer")
        return StreamEvent(
            self.request_id,
            delta.index,
            text,
            token_ids,
            logprobs,
            reason,
            _stopped_by(delta),
            _usage(delta.usage),
            parts,
            "" if position.reader is None else position.reader.warning,
            position.reading,
            read,
            delta.vector,
        )

    def wait_after(self, failure: grpc.RpcError | StreamGapError | None) -> float:
        """Seconds to wait before the next call; raises the error if asking again cannot help.

        failure: what ended the call; None if the stream just ended before the answer was complete.
        """
        now = self._clock()
        wait = self._wait_after(failure, now)
        if now + wait >= self._deadline:
            raise self._too_late() from (failure if isinstance(failure, grpc.RpcError) else None)
        return wait

    def _wait_after(self, failure: grpc.RpcError | StreamGapError | None, now: float) -> float:
        if isinstance(failure, grpc.RpcError):
            queue_wait = queue_full_wait_s(failure)
            if queue_wait is not None:
                self._heard()
                return queue_wait * (1 + 0.25 * self._draw())
            if not is_loss(failure):
                self._refused = True
                raise from_rpc_error(failure) from failure
        if now - self._call_began > CONNECTED_AFTER_S:
            self._heard()
        if self._lost_since is None:
            self._lost_since = now
        lost_s = now - self._lost_since
        self._loss = (
            str(from_rpc_error(failure)) if isinstance(failure, grpc.RpcError) else "its streams break off"
        )
        if self._policy.give_up_s is not None and lost_s > self._policy.give_up_s:
            raise UnavailableError(f"gave up after {lost_s:.0f} s without the service: {self._loss}")
        return self._backoff.next_wait()

    def _heard(self) -> None:
        self._lost_since = None
        self._backoff.reset()

    def _too_late(self) -> DeadlineExceededError:
        lost = f"; the service is away: {self._loss}" if self._lost_since is not None else ""
        return DeadlineExceededError(
            f"request {self.request_id} was not answered within {self._timeout_s:g} s{lost}"
        )


def _stopped_by(delta: pb.AnswerDelta) -> int | str | None:
    match delta.WhichOneof("stopped_by"):
        case "stop_token_id":
            return delta.stop_token_id
        case "stop_string":
            return delta.stop_string
        case _:
            return None


def _usage(message: pb.Usage) -> Usage:
    return Usage(
        prompt_tokens=message.prompt_tokens,
        output_tokens=message.output_tokens,
        ttft_ms=message.ttft_ms,
        total_ms=message.total_ms,
        preemptions=message.preemptions,
        cached_tokens=message.cached_tokens,
    )
