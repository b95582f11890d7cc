"""ControllerService (sequences in, results out) and TimelineService of one instance."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from controller.api.report import report_to_wire
from controller.api.sequences import SequencesServicer, Teller
from controller.api.status import instance_status
from controller.runtime.live import LiveInstance
from controller.scheduler.events import NewSequence
from controller.scheduler.holdings import HoldingsReader
from controller.scheduler.report import instance_report, step_costs
from tidepipe.v1 import controller_pb2, timeline_pb2, timeline_pb2_grpc
from tidepipe_common.codec.adapters import adapters_to_wire
from tidepipe_common.codec.kv_transfer import handle_from_wire, lease_from_wire
from tidepipe_common.codec.offer import add_offer
from tidepipe_common.codec.timeline import timeline_to_wire
from tidepipe_common.latency.model import StepCost
from tidepipe_common.settings.instance import InstanceSettings
from tidepipe_common.types.kv_transfer import KvHandle
from tidepipe_common.types.plan import PROTOCOL_VERSION

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class ControllerServicer(SequencesServicer):
    """An instance with stages as routers see it."""

    _instance: LiveInstance

    def __init__(
        self,
        instance: LiveInstance,
        settings: InstanceSettings,
        incarnation: str,
        cost: Callable[[], StepCost],
    ) -> None:
        """cost: what steps cost here, as far as it is known; asked for once the stages are up."""
        super().__init__(instance, settings.instance_id, incarnation)
        self._settings = settings
        self._cost = cost

    def _check(self, arrival: NewSequence) -> None:
        super()._check(arrival)
        self._instance.body.check(arrival.sampling)

    def _adapters(self) -> Collection[str]:
        about = self._instance.body.about
        return [] if about is None else [one.fingerprint for one in about.adapters]

    def _vocab_size(self) -> int:
        about = self._instance.body.about
        return 0 if about is None else about.shape.vocab_size

    def _export(self, sequence_ids: Sequence[str], lease_s: float) -> bool:
        if not self._instance.hands_over:
            return False
        self._instance.export(sequence_ids, lease_s)
        return True

    def _lend(
        self, request: controller_pb2.LendPrefixRequest, prefix_root: str, keys: Sequence[bytes]
    ) -> KvHandle | None:
        if not self._instance.hands_over:
            return None
        lease_s = lease_from_wire(request.lease_ms)
        return self._instance.lend(request.loan_id, request.prompt_token_ids, prefix_root, keys, lease_s)

    def _fetch_ahead(
        self, request: controller_pb2.FetchPrefixRequest, prefix_root: str, keys: Sequence[bytes]
    ) -> bool:
        if not self._instance.hands_over:
            return False
        handle = handle_from_wire(request.kv)
        self._instance.fetch_ahead(handle, request.prompt_token_ids, prefix_root, keys)
        return True

    def _key_blocks(self) -> int:
        config = self._instance.scheduler.config
        return config.block_size if config.prefix_caching else 0

    def _teller(self, router_id: str) -> Teller:
        instance = self._instance
        held = instance.scheduler.state.holdings
        holdings = None if held is None else HoldingsReader(held)

        def tell(now: float) -> controller_pb2.InstanceReport:
            return report_to_wire(
                instance_report(instance.scheduler, self._cost(), now),
                step_costs(instance.scheduler, self._cost()),
                None if holdings is None else holdings.next(),
                incarnation=self._incarnation,
                serving=instance.serving and not instance.draining,
                accepted=instance.hub.ordinal(router_id),
                stages_down=not instance.serving,
                transfer=instance.transfer,
                barred=instance.scheduler.hand_over.rule.barred(now),
            )

        return tell

    async def Describe(  # noqa: N802 (the contract's name)
        self, request: controller_pb2.DescribeRequest, context: Context
    ) -> controller_pb2.DescribeResponse:
        """See controller.proto."""
        scheduler = self._instance.scheduler
        about = self._instance.body.about
        assert about is not None, "a scheduler exists only after the stages described themselves"
        reply = controller_pb2.DescribeResponse(
            instance_id=self._instance_id,
            incarnation=self._incarnation,
            model=about.model,
            model_fingerprint=about.fingerprint,
            context_length=scheduler.longest_sequence,
            vocab_size=about.shape.vocab_size,
            eos_token_ids=about.shape.eos_token_ids,
            protocol_version=PROTOCOL_VERSION,
            max_sequences=scheduler.config.max_sequences,
            lacks=sorted(self._instance.body.lacks),
            adapters=adapters_to_wire(about.adapters),
            hands_over=self._instance.hands_over,
        )
        add_offer(reply, self._settings)
        return reply

    async def GetInstanceStatus(  # noqa: N802
        self, request: controller_pb2.GetInstanceStatusRequest, context: Context
    ) -> controller_pb2.GetInstanceStatusResponse:
        """See controller.proto."""
        status = instance_status(self._instance, self._instance_id, self._incarnation)
        return controller_pb2.GetInstanceStatusResponse(status=status)

    async def SetPolicy(  # noqa: N802
        self, request: controller_pb2.SetPolicyRequest, context: Context
    ) -> controller_pb2.SetPolicyResponse:
        """See controller.proto."""
        return controller_pb2.SetPolicyResponse(before=self._instance.choose_policy(request.policy))

    async def ClearPrefixCache(  # noqa: N802
        self, request: controller_pb2.ClearPrefixCacheRequest, context: Context
    ) -> controller_pb2.ClearPrefixCacheResponse:
        """See controller.proto."""
        return controller_pb2.ClearPrefixCacheResponse(blocks=self._instance.clear_prefix_cache())


class TimelineServicer(timeline_pb2_grpc.TimelineServiceServicer):
    """What the instance has done lately."""

    def __init__(self, instance: LiveInstance, instance_id: str) -> None:
        self._instance = instance
        self._instance_id = instance_id

    async def GetTimeline(  # noqa: N802
        self, request: timeline_pb2.GetTimelineRequest, context: Context
    ) -> AsyncIterator[timeline_pb2.GetTimelineResponse]:
        """See timeline.proto."""
        now = self._instance.now()
        since = now - request.seconds if request.seconds > 0 else 0.0
        timeline = self._instance.activity.timeline(self._instance_id, since, time.time() - now)
        for piece in timeline_to_wire(timeline):
            yield piece
