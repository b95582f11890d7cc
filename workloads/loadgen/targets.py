"""What a server under load is, and a TidePipe router as one, over gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import grpc

from tidepipe.client.requests import check_endpoint, make_request
from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import inference_pb2_grpc
from tidepipe_common.codec.sampling import finish_from_wire
from tidepipe_common.errors import UnavailableError
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.types.sampling import SamplingParams
from workloads.loadgen.outcome import Outcome
from workloads.loadgen.requests import LoadRequest

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
            raise UnavailableError(f"no TidePipe router answers at {self._endpoint}") from error
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
                outcome.error = delta.error or outcome.error
            if reason is None or not reason.whole:
                outcome.error = outcome.error or CUT
        except grpc.aio.AioRpcError as error:
            outcome.rejected = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            outcome.error = error.details() or error.code().name

    async def close(self) -> None:
        """See Target."""
        await self._channel.close()
