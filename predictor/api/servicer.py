"""PredictorService: protobuf in and out, nonsense refused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from predictor.api.wire import features_from_wire, observation_from_wire
from predictor.evaluation.champion import Champion
from predictor.learning import Learning
from predictor.signals import SignalHeads
from tidepipe.v1 import predictor_pb2 as pb
from tidepipe.v1 import predictor_pb2_grpc as pb_grpc
from tidepipe_common.errors import InvalidRequestError

MAX_BATCH = 1024
OBSERVED_AT_ONCE = 64
MAX_OBSERVATION_BYTES = 8192
"""A prompt in numbers has some 1,500 at most, its sequence's id 1,024 characters."""

log = structlog.get_logger()


@dataclass(slots=True)
class Counts:
    """Since start."""

    predicted: int = 0
    observed: int = 0
    rejected: int = 0


Context = grpc.aio.ServicerContext[Any, Any]


class PredictorServicer(pb_grpc.PredictorServiceServicer):
    """Answers from heads and champion, tells them and the learning what ended, and counts."""

    def __init__(self, champion: Champion, learning: Learning, heads: SignalHeads) -> None:
        self.champion = champion
        self.heads = heads
        self.learning = learning
        self.counts = Counts()

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:  # noqa: N802
        """Predict all, or refuse all: a request that makes no sense is the caller's defect."""
        _check_size("requests", len(request.requests))
        features = [features_from_wire(message) for message in request.requests]
        for message, entry in zip(request.requests, features, strict=True):
            if (fault := entry.fault()) is not None:
                raise InvalidRequestError(f"requests[{message.key!r}]: {fault}", "requests")
        predictions = self.heads.predict(features)
        self.counts.predicted += len(features)
        return pb.PredictResponse(
            predictions=[
                pb.LengthPrediction(key=message.key, levels=prediction.levels, tokens=prediction.tokens)
                for message, prediction in zip(request.requests, predictions, strict=True)
            ],
            model_version=self.champion.version,
        )

    async def Observe(self, request: pb.ObserveRequest, context: Context) -> pb.ObserveResponse:  # noqa: N802
        """Take what makes sense and count the rest: one bad line must not cost a batch of good ones."""
        _check_size("observations", len(request.observations))
        accepted = 0
        first_fault = ""
        for begin in range(0, len(request.observations), OBSERVED_AT_ONCE):
            sound = []
            for message in request.observations[begin : begin + OBSERVED_AT_ONCE]:
                observation = observation_from_wire(message)
                if (fault := _too_large(message) or observation.fault()) is None:
                    sound.append((message, observation))
                else:
                    first_fault = first_fault or fault
            self.heads.observe([observation for _, observation in sound])
            self.learning.note([_to_keep(message) for message, _ in sound])
            accepted += len(sound)
            # Predictions are waited for, observations are not.
            await asyncio.sleep(0)
        rejected = len(request.observations) - accepted
        if rejected:
            log.warning("observations rejected", rejected=rejected, first_reason=first_fault)
        self.counts.rejected += rejected
        self.counts.observed += accepted
        return pb.ObserveResponse(accepted=accepted, rejected=rejected)

    async def GetPredictorStatus(  # noqa: N802
        self, request: pb.GetPredictorStatusRequest, context: Context
    ) -> pb.GetPredictorStatusResponse:
        """What the predictor knows."""
        p50, p90 = self.champion.coverage
        return pb.GetPredictorStatusResponse(
            model_version=self.champion.version,
            window=self.champion.window,
            observed=self.counts.observed,
            predicted=self.counts.predicted,
            recent_p50_coverage=p50,
            recent_p90_coverage=p90,
            trained=self.learning.trained,
            adopted=self.learning.adopted,
            drifts=self.champion.drifts,
            last_failure=self.learning.last_failure or self.heads.last_failure,
        )


def _to_keep(message: pb.Observation) -> pb.Observation:
    """What the text's model learns from, and nothing else: no name, no signal (heads keep that, or nobody),
    nothing that another version says."""
    for name in ("key", "signal", "model"):
        message.features.ClearField(name)
    message.DiscardUnknownFields()
    # Older routers send them in the order of the words.
    if message.features.HasField("prompt"):
        buckets = message.features.prompt.buckets
        buckets[:] = sorted(buckets)
    return message


def _too_large(message: pb.Observation) -> str | None:
    """Thousands are kept, with whatever numbers of other versions they have."""
    size = message.ByteSize()
    return f"it has {size} bytes, of {MAX_OBSERVATION_BYTES}" if size > MAX_OBSERVATION_BYTES else None


def _check_size(name: str, size: int) -> None:
    if size > MAX_BATCH:
        raise InvalidRequestError(f"at most {MAX_BATCH} {name} may travel in one call, got {size}", name)
