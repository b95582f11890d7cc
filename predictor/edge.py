"""PredictorService: protobuf in and out, nonsense refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from common.errors import InvalidRequestError
from common.lengths.request import LengthModel, Observation, RequestFeatures
from tidepipe.v1 import predictor_pb2 as pb
from tidepipe.v1 import predictor_pb2_grpc as pb_grpc

MAX_BATCH = 1024

log = structlog.get_logger()


@dataclass(slots=True)
class Counts:
    """Since start."""

    predicted: int = 0
    observed: int = 0
    rejected: int = 0


Context = grpc.aio.ServicerContext[Any, Any]


class PredictorServicer(pb_grpc.PredictorServiceServicer):
    """Answers from one LengthModel, and counts."""

    def __init__(self, model: LengthModel) -> None:
        self._model = model
        self.counts = Counts()

    @property
    def window(self) -> int:
        """Observations that the answers rest on."""
        return self._model.window

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:  # noqa: N802
        """Predict all, or refuse all: a request that makes no sense is the caller's defect."""
        _check_size("requests", len(request.requests))
        features = [_features(message) for message in request.requests]
        for message, entry in zip(request.requests, features, strict=True):
            if (fault := entry.fault()) is not None:
                raise InvalidRequestError(f"requests[{message.key!r}]: {fault}", "requests")
        predictions = self._model.predict(features)
        self.counts.predicted += len(features)
        return pb.PredictResponse(
            predictions=[
                pb.LengthPrediction(key=message.key, levels=prediction.levels, tokens=prediction.tokens)
                for message, prediction in zip(request.requests, predictions, strict=True)
            ],
            model_version=self._model.version,
        )

    async def Observe(self, request: pb.ObserveRequest, context: Context) -> pb.ObserveResponse:  # noqa: N802
        """Take what makes sense and count the rest: one bad line must not cost a batch of good ones."""
        _check_size("observations", len(request.observations))
        observations = [
            Observation(_features(message.features), message.output_tokens, message.censored)
            for message in request.observations
        ]
        sound = [entry for entry in observations if entry.fault() is None]
        rejected = len(observations) - len(sound)
        self.counts.rejected += rejected
        if rejected:
            first = next(fault for entry in observations if (fault := entry.fault()) is not None)
            log.warning("observations rejected", rejected=rejected, first_reason=first)
        self._model.observe(sound)
        self.counts.observed += len(sound)
        return pb.ObserveResponse(accepted=len(sound), rejected=rejected)

    async def GetPredictorStatus(  # noqa: N802
        self, request: pb.GetPredictorStatusRequest, context: Context
    ) -> pb.GetPredictorStatusResponse:
        """What the predictor knows."""
        return pb.GetPredictorStatusResponse(
            model_version=self._model.version,
            window=self._model.window,
            observed=self.counts.observed,
            predicted=self.counts.predicted,
        )


def _features(message: pb.RequestFeatures) -> RequestFeatures:
    return RequestFeatures(message.prompt_tokens, message.max_tokens, message.temperature)


def _check_size(name: str, size: int) -> None:
    if size > MAX_BATCH:
        raise InvalidRequestError(f"at most {MAX_BATCH} {name} may travel in one call, got {size}", name)
