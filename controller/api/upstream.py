"""ControllerService of an instance that forwards to somebody else's server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from controller.api.report import report_to_wire
from controller.api.sequences import SequencesServicer, Teller
from controller.upstream.instance import UpstreamInstance
from tidepipe.v1 import controller_pb2, timeline_pb2, timeline_pb2_grpc
from tidepipe_common.codec.offer import add_offer
from tidepipe_common.codec.plan import phase_to_wire
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.settings.instance import InstanceSettings
from tidepipe_common.types.plan import PROTOCOL_VERSION

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class UpstreamServicer(SequencesServicer):
    """The instance as routers see it."""

    _instance: UpstreamInstance

    def __init__(
        self, instance: UpstreamInstance, settings: InstanceSettings, incarnation: str, model: str
    ) -> None:
        """model: where its tokenizer is."""
        super().__init__(instance, settings.instance_id, incarnation)
        self._settings = settings
        self._model = model

    def _teller(self, router_id: str) -> Teller:
        instance = self._instance

        def tell(now: float) -> controller_pb2.InstanceReport:
            return report_to_wire(
                instance.report(now),
                instance.pace.costs(instance.places, now),
                None,
                incarnation=self._incarnation,
                serving=instance.serving,
                accepted=instance.hub.ordinal(router_id),
            )

        return tell

    async def Describe(  # noqa: N802 (the contract's name)
        self, request: controller_pb2.DescribeRequest, context: Context
    ) -> controller_pb2.DescribeResponse:
        """No fingerprint: nobody here can look at the weights, whoever started this vouches for them."""
        link = self._instance.link
        reply = controller_pb2.DescribeResponse(
            instance_id=self._instance_id,
            incarnation=self._incarnation,
            model=self._model,
            context_length=link.context_length,
            vocab_size=link.vocab_size,
            eos_token_ids=link.ends,
            protocol_version=PROTOCOL_VERSION,
            max_sequences=self._instance.room,
            lacks=sorted(link.dialect.lacks),
        )
        add_offer(reply, self._settings)
        return reply

    async def GetInstanceStatus(  # noqa: N802
        self, request: controller_pb2.GetInstanceStatusRequest, context: Context
    ) -> controller_pb2.GetInstanceStatusResponse:
        """As far as it is known: stages, blocks and batches are the server's own business."""
        instance, stats = self._instance, self._instance.stats
        pace, prompt_ms = instance.pace, 1e3 * instance.pace.prompt_token_s(instance.now())
        return controller_pb2.GetInstanceStatusResponse(
            status=controller_pb2.InstanceStatus(
                instance_id=self._instance_id,
                incarnation=self._incarnation,
                epoch=instance.link.downs,
                serving=instance.serving,
                detail=instance.link.detail,
                phase=phase_to_wire(instance.phase),
                phase_reason=(
                    f"{instance.running} of {instance.places} places taken, first token after "
                    f"{pace.first_token_s:.2f} s, prompts {prompt_ms:.2f} ms a token"
                ),
                waiting=instance.waiting,
                running=instance.running,
                preemptions=stats.returned.total(),
                prefill_tokens=stats.prompt_tokens,
                decode_tokens=stats.output_tokens,
                policy=f"upstream:{instance.link.dialect.name}",
                finished=stats.finished.total(),
            )
        )

    async def SetPolicy(  # noqa: N802
        self, request: controller_pb2.SetPolicyRequest, context: Context
    ) -> controller_pb2.SetPolicyResponse:
        """Nobody schedules here."""
        raise InvalidRequestError(f"{self._instance_id} is a server that schedules by itself", "policy")

    async def ClearPrefixCache(  # noqa: N802
        self, request: controller_pb2.ClearPrefixCacheRequest, context: Context
    ) -> controller_pb2.ClearPrefixCacheResponse:
        """What the server keeps is the server's."""
        raise InvalidRequestError(f"{self._instance_id} is a server that keeps its own prefix cache")


class NoTimelineServicer(timeline_pb2_grpc.TimelineServiceServicer):
    """What the server does is not seen from here: an empty timeline."""

    def __init__(self, instance_id: str) -> None:
        self._instance_id = instance_id

    async def GetTimeline(  # noqa: N802
        self, request: timeline_pb2.GetTimelineRequest, context: Context
    ) -> AsyncIterator[timeline_pb2.GetTimelineResponse]:
        """See timeline.proto."""
        yield timeline_pb2.GetTimelineResponse(instance_id=self._instance_id)
