"""A router that answers from a script and misbehaves on demand: what the SDK must cope with."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc

from tidepipe.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    controller_pb2,
    inference_pb2,
    inference_pb2_grpc,
    sampling_pb2,
)

WORDS = tuple(f"wörd{number} " for number in range(12))
TEXT = "".join(WORDS)
TOKENS = tuple(range(100, 100 + len(WORDS)))


class FakeRouter(inference_pb2_grpc.InferenceServiceServicer, admin_pb2_grpc.AdminServiceServicer):
    """Answers every prompt with WORDS, a token and a word at a time.

    cut_after: end the k-th call of a request after so many tokens with UNAVAILABLE. full_calls: refuse so
    many calls with a full queue. cancels: so many requests are cancelled after two tokens. step_s: time per
    token. repeats_all: start each call at the first token.
    """

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.cut_after: list[int] = []
        self.full_calls = 0
        self.cancels = 0
        self.step_s = 0.0
        self.repeats_all = False
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.cancelled: list[str] = []
        self.peak = 0
        self._running = 0
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(32)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, self._server)
        host = address.rpartition(":")[0]
        self.address = f"{host}:{self._server.add_insecure_port(address)}"
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End at once, as if killed."""
        self._server.stop(grace=None).wait(5)
        self._pool.shutdown(wait=True)

    def Generate(  # noqa: N802
        self, request: inference_pb2.GenerateRequest, context: Any
    ) -> Iterator[inference_pb2.GenerateResponse]:
        with self._lock:
            self.requests.append(request)
            call = self._calls[request.request.request_id]
            self._calls[request.request.request_id] += 1
            self._running += 1
            self.peak = max(self.peak, self._running)
        try:
            yield from self._answer(request, call, context)
        finally:
            with self._lock:
                self._running -= 1

    def Cancel(  # noqa: N802
        self, request: inference_pb2.CancelRequest, context: Any
    ) -> inference_pb2.CancelResponse:
        self.cancelled.extend(request.request_ids)
        return inference_pb2.CancelResponse(cancelled=len(request.request_ids))

    def ListModels(  # noqa: N802
        self, request: inference_pb2.ListModelsRequest, context: Any
    ) -> inference_pb2.ListModelsResponse:
        return inference_pb2.ListModelsResponse(
            models=[inference_pb2.ModelInfo(name="fake", context_length=64, vocab_size=200)]
        )

    def GetClusterStatus(  # noqa: N802
        self, request: admin_pb2.GetClusterStatusRequest, context: Any
    ) -> admin_pb2.GetClusterStatusResponse:
        stage = controller_pb2.StageStatus(layer_end=1, decode_busy_s=time.monotonic(), rss_bytes=2**20)
        status = controller_pb2.InstanceStatus(
            phase=controller_pb2.PHASE_DECODE, phase_switches=len(self.requests), stages=[stage]
        )
        return admin_pb2.GetClusterStatusResponse(
            instances=[admin_pb2.InstanceEntry(instance_id="instance-0", connected=True, status=status)]
        )

    def _answer(
        self, request: inference_pb2.GenerateRequest, call: int, context: Any
    ) -> Iterator[inference_pb2.GenerateResponse]:
        if request.request.text == "bad":
            context.set_trailing_metadata((("tidepipe-param", "prompt"),))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this prompt is bad")
        if call < self.full_calls:
            context.set_trailing_metadata((("retry-after-ms", "30"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        stop = self.cut_after[call] if call < len(self.cut_after) else len(WORDS)
        begin = 0 if self.repeats_all else sum(position.tokens for position in request.resume)
        for number in range(begin, stop):
            time.sleep(self.step_s)
            last = number == len(WORDS) - 1
            reason = sampling_pb2.FINISH_REASON_LENGTH if last else sampling_pb2.FINISH_REASON_UNSPECIFIED
            if call == 0 and number == 2 and self.cancels > 0:
                self.cancels -= 1
                last, reason = True, sampling_pb2.FINISH_REASON_CANCELLED
            yield inference_pb2.GenerateResponse(
                delta=inference_pb2.AnswerDelta(
                    request_id=request.request.request_id,
                    token_offset=number,
                    character_offset=len("".join(WORDS[:number])),
                    token_ids=[TOKENS[number]],
                    text=WORDS[number],
                    finish_reason=reason,
                    usage=inference_pb2.Usage(prompt_tokens=3, output_tokens=len(WORDS)) if last else None,
                )
            )
            if last:
                return
        if stop < len(WORDS):
            context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
