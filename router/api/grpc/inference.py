"""InferenceService: what clients call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from router.instances.served_model import ModelFacts
from router.models.model import ServedModel
from router.models.models import ServedModels
from router.requests.entry import Subscription, known_by_key
from router.requests.table import RequestTable
from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import inference_pb2_grpc as pb_grpc
from tidepipe_common.codec.inference import delta_to_wire, grace_s, positions_from_wire, request_from_wire
from tidepipe_common.limits import MAX_CANCELLED, check_count
from tidepipe_common.rpc.guard import authorization_of
from tidepipe_common.security.caller import current
from tidepipe_common.telemetry.traces import trace_context
from tidepipe_common.types.request import AnswerPosition, GenerationRequest

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(pb_grpc.InferenceServiceServicer):
    """Requests of clients. A call that ends, for whatever reason, is a client that went away."""

    def __init__(self, table: RequestTable, models: ServedModels) -> None:
        self._table = table
        self._models = models

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Submit, or attach to what was submitted, and stream."""
        wanted = _wanted(request.request, context)
        resume = positions_from_wire(request.resume)
        resuming = any(position.tokens or position.characters for position in resume)
        with self._table.attach(wanted, grace_s(request.request), resuming=resuming) as subscription:
            _when_over(context, subscription.leave)
            async for delta in _said(subscription, wanted.request_id, resume):
                yield pb.GenerateResponse(delta=delta)

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:  # noqa: N802
        """Submit without listening."""
        wanted = _wanted(request.request, context)
        with self._table.attach(wanted, grace_s(request.request), detached=True) as subscription:
            await subscription.admitted()
            return pb.SubmitResponse(
                request_id=wanted.request_id,
                prompt_tokens=subscription.entry.prompt_tokens,
                attached=subscription.attached,
            )

    async def Stream(  # noqa: N802
        self, request: pb.StreamRequest, context: Context
    ) -> AsyncIterator[pb.StreamResponse]:
        """Listen to what was submitted."""
        with self._table.attach_known(request.request_id, current()) as subscription:
            _when_over(context, subscription.leave)
            resume = positions_from_wire(request.resume)
            async for delta in _said(subscription, request.request_id, resume):
                yield pb.StreamResponse(delta=delta)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:  # noqa: N802
        """End requests."""
        check_count("request_ids", len(request.request_ids), MAX_CANCELLED)
        return pb.CancelResponse(cancelled=self._table.cancel(request.request_ids, current()))

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """The models that a request would find an instance for, by each of their names."""
        return pb.ListModelsResponse(models=[_model_info(*one) for one in self._models.entries()])


def _wanted(message: pb.InferenceRequest, context: Context) -> GenerationRequest:
    """What is asked for, by whom, and within which of the caller's spans."""
    metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    wanted = known_by_key(request_from_wire(message), authorization_of(context))
    return replace(wanted, trace_context=trace_context(metadata))


async def _said(
    subscription: Subscription, request_id: str, resume: Sequence[AnswerPosition]
) -> AsyncIterator[pb.AnswerDelta]:
    """All that is new, as it travels; the first piece of each answer says how it is read."""
    told: set[int] = set()
    async for deltas in subscription.deltas(resume):
        for delta in deltas:
            index = delta.piece.index
            yield delta_to_wire(request_id, delta, None if index in told else subscription.entry.reading)
            told.add(index)


def _when_over(context: Context, leave: Callable[[], None]) -> None:
    """Also if the call ends between two messages, when nobody drives the handler on."""
    context.add_done_callback(lambda _: leave())  # type: ignore[arg-type] # the stubs want a subclass


def _model_info(name: str, model: ServedModel, facts: ModelFacts) -> pb.ModelInfo:
    return pb.ModelInfo(
        name=name,
        context_length=facts.context_length,
        vocab_size=facts.vocab_size,
        eos_token_ids=facts.eos_token_ids,
        fingerprint=facts.fingerprint,
        alias_of=model.name if name in model.names[1:] else "",
        ttft_ms=1000 * model.target.ttft_s,
        tpot_ms=1000 * model.target.tpot_s,
        adapter_of=model.name if model.adapter(name) else "",
    )
