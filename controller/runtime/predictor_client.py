"""How long will outputs be? Asks the predictor; goes on with a fallback at once if it is down or slow."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import structlog

from tidepipe.v1 import predictor_pb2, predictor_pb2_grpc
from tidepipe_common.codec.prompt import prompt_to_wire
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.lengths.request import NO_PROMPT
from tidepipe_common.rpc.channel import open_channel

PREDICT_TIMEOUT_S = 0.1
OBSERVE_TIMEOUT_S = 1.0
MAX_QUEUED = 16_384
BATCH = 256
FALLBACK_WINDOW = 512
FALLBACK_LEAST = 16
SILENCE_S = 5.0
"""After a failure the predictor is left alone for this long."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Features:
    """What is known of a sequence before it runs (again). Lengths in tokens."""

    sequence_id: str
    prompt_tokens: int
    max_tokens: int
    temperature: float
    prompt: PromptFeatures = NO_PROMPT
    generated_tokens: int = 0


Predicted = Callable[[str, float, float], None]
"""(sequence id, median, 90th percentile), tokens."""


class LengthOracle:
    """Predictions in, observations out; never waits, never fails."""

    def __init__(self, address: str | None, predicted: Predicted) -> None:
        self.fallbacks = 0
        self._address = address
        self._predicted = predicted
        self._asked: asyncio.Queue[Features] = asyncio.Queue(MAX_QUEUED)
        self._seen: deque[tuple[Features, int, bool]] = deque(maxlen=MAX_QUEUED)
        self._recent: deque[int] = deque(maxlen=FALLBACK_WINDOW)
        self._new = asyncio.Event()
        self._silent_until = 0.0

    def ask(self, features: Features) -> None:
        """Predict soon; if too many are waiting, the fallback answers now."""
        try:
            self._asked.put_nowait(features)
        except asyncio.QueueFull:
            self._fall_back([features])

    def observe(self, features: Features, output_tokens: int, censored: bool) -> None:
        """An output ended."""
        if not censored:
            self._recent.append(output_tokens)
        if self._address:
            self._seen.append((features, output_tokens, censored))
            self._new.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        if self._address is None:
            while True:
                self._fall_back([await self._asked.get()])
        async with open_channel(self._address) as channel, asyncio.TaskGroup() as group:
            stub = predictor_pb2_grpc.PredictorServiceStub(channel)
            group.create_task(self._predict_loop(stub), name="predict")
            group.create_task(self._observe_loop(stub), name="observe")

    async def _predict_loop(self, stub: predictor_pb2_grpc.PredictorServiceAsyncStub) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._asked.get()]
            while len(batch) < BATCH and not self._asked.empty():
                batch.append(self._asked.get_nowait())
            if loop.time() < self._silent_until:
                self._fall_back(batch)
                continue
            try:
                reply = await stub.Predict(
                    predictor_pb2.PredictRequest(requests=[_to_wire(one) for one in batch]),
                    timeout=PREDICT_TIMEOUT_S,
                )
                self._take(batch, reply)
            except (grpc.aio.AioRpcError, ValueError) as error:
                self._silent_until = loop.time() + SILENCE_S
                log.warning("predictor failed, using the fallback", reason=_reason(error))
                self._fall_back(batch)

    def _take(self, batch: Sequence[Features], reply: predictor_pb2.PredictResponse) -> None:
        """Pass predictions on; ValueError, before any is, if they make no sense."""
        if [one.key for one in reply.predictions] != [one.sequence_id for one in batch]:
            raise ValueError("the predictor's answer is not about what it was asked")
        quantiles = [_p50_p90(one) for one in reply.predictions]
        for features, (p50, p90) in zip(batch, quantiles, strict=True):
            limit = features.max_tokens
            self._predicted(features.sequence_id, min(p50, limit), min(p90, limit))

    def _fall_back(self, batch: Sequence[Features]) -> None:
        """Quantiles of the newest outputs here; none at all while there are too few."""
        if self._address:
            self.fallbacks += len(batch)
        if len(self._recent) < FALLBACK_LEAST:
            return
        p50, p90 = np.quantile(np.fromiter(self._recent, dtype=np.float64), (0.5, 0.9))
        for one in batch:
            limit = one.max_tokens
            self._predicted(one.sequence_id, min(float(p50), limit), min(float(p90), limit))

    async def _observe_loop(self, stub: predictor_pb2_grpc.PredictorServiceAsyncStub) -> None:
        while True:
            await self._new.wait()
            # Ends come in bursts; one call for many.
            await asyncio.sleep(0.2)
            self._new.clear()
            while self._seen:
                batch = [self._seen.popleft() for _ in range(min(BATCH, len(self._seen)))]
                observations = [
                    predictor_pb2.Observation(
                        features=_to_wire(features), output_tokens=tokens, censored=censored
                    )
                    for features, tokens, censored in batch
                ]
                # Lost observations cost a little accuracy, nothing else.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.Observe(
                        predictor_pb2.ObserveRequest(observations=observations), timeout=OBSERVE_TIMEOUT_S
                    )


def _p50_p90(prediction: predictor_pb2.LengthPrediction) -> tuple[float, float]:
    levels, tokens = np.array(prediction.levels), np.array(prediction.tokens)
    if len(levels) != len(tokens) or not len(levels):
        raise ValueError("the predictor's answer has no levels")
    if not np.isfinite(tokens).all() or tokens[0] < 0.0 or (np.diff(tokens) < 0.0).any():
        raise ValueError(f"the predictor's answer makes no sense: {tokens.tolist()}")
    p50, p90 = np.interp((0.5, 0.9), levels, tokens)
    return float(p50), float(p90)


def _to_wire(features: Features) -> predictor_pb2.RequestFeatures:
    return predictor_pb2.RequestFeatures(
        key=features.sequence_id,
        prompt_tokens=features.prompt_tokens,
        max_tokens=features.max_tokens,
        temperature=features.temperature,
        prompt=prompt_to_wire(features.prompt),
        generated_tokens=features.generated_tokens,
    )


def _reason(error: Exception) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else str(error)
