"""The client of one stage worker: who it is, its epochs, plans out and reports in (`stage.proto`)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import structlog

from controller.scheduler.fabric import FabricPort
from controller.scheduler.offload import NO_OFFLOAD, OffloadCapacity
from tidepipe.v1 import stage_pb2, stage_pb2_grpc
from tidepipe_common.codec.adapters import adapters_from_wire
from tidepipe_common.codec.kv_transfer import orders_to_wire
from tidepipe_common.codec.numbers import strange_number
from tidepipe_common.codec.plan import WirePlan, news_from_wire
from tidepipe_common.codec.shape import shape_from_wire
from tidepipe_common.errors import IncompatibleError, TidePipeError, UnavailableError
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import from_rpc_error
from tidepipe_common.types.adapter import Adapter
from tidepipe_common.types.kv_transfer import KvFetched, KvOrders
from tidepipe_common.types.model_shape import ModelShape
from tidepipe_common.types.plan import (
    PROTOCOL_VERSION,
    FailureKind,
    Heartbeat,
    Phase,
    StageFailure,
    StageNews,
    StageTimes,
    StepReport,
)

DESCRIBE_TIMEOUT_S = 5.0
CONFIGURE_TIMEOUT_S = 900.0
LEASE_S = 6.0
"""A stage that sends neither a report nor a heartbeat (one each second) for this long is lost."""
RENEWED_S = 0.5
"""A lease is renewed this seldom: setting a timer anew for each report costs as much as decoding it."""
MAX_PLANS_QUEUED = 64
HUNG_PATIENCE_S = 1.0
"""For a step that has taken too long already."""
CLOCKS_APART, CLOCKS_APART_S = 0.05, 1.0
"""By so much, and by this share, a step may have taken longer by its stage's clock than by ours."""

log = structlog.get_logger()

Queue: TypeAlias = "asyncio.Queue[WirePlan | list[KvOrders] | None]"
"""What one epoch of a stage is to be sent; None: nothing more."""


@dataclass(frozen=True, slots=True)
class StageAbout:
    """What a worker says of itself. reports_go_along: it passes on, and tells, what stages before it took."""

    model: str
    fingerprint: str
    device: str
    dtype: str
    pid: int
    shape: ModelShape
    epoch: int
    fabric: FabricPort
    adapters: tuple[Adapter, ...] = ()
    reports_go_along: bool = False


@dataclass(frozen=True, slots=True)
class StageSetup:
    """What a worker is to be in one epoch; see ConfigureRequest. layers: first, and one past the last."""

    epoch: int
    incarnation: str
    model_fingerprint: str
    layers: tuple[int, int]
    block_size: int
    kv_blocks: int
    max_step_tokens: int
    next_address: str
    fabric_before: str
    fabric_after: str
    reports_go_along: bool


@dataclass(slots=True)
class StageAccount:
    """What the controller knows of a stage. Times in seconds, since the controller started.

    running_step: that it was computing at its last sign of life; 0: none.
    kv_layout, kv_layer_block_bytes, kv_way_bytes_per_s: see ConfigureResponse.
    """

    address: str
    about: StageAbout | None = None
    layers: tuple[int, int] = (0, 0)
    rss_bytes: int = 0
    slow_because: str = ""
    offload: OffloadCapacity = NO_OFFLOAD
    prefill_busy_s: float = 0.0
    decode_busy_s: float = 0.0
    plan_wait_s: float = 0.0
    running_step: int = 0
    alive: bool = False
    kv_layout: str = ""
    kv_layer_block_bytes: int = 0
    kv_way_bytes_per_s: float = 0.0


class StageLostError(Exception):
    """A stage, or its link to the next one, is gone for this epoch.

    failed_step: the step whose execution failed, if that was the cause.
    open_steps: those that the lost stage had not reported.
    """

    def __init__(self, detail: str, failed_step: int | None = None, open_steps: tuple[int, ...] = ()) -> None:
        super().__init__(detail)
        self.failed_step = failed_step
        self.open_steps = open_steps


class NextStageLostError(StageLostError):
    """A stage does not reach the one behind it, which may be at its end."""


class StageClient:
    """Calls to one stage worker. `account` outlives epochs. hung: it was given up in the midst of a step."""

    def __init__(self, address: str, index: int, count: int) -> None:
        self.address = address
        self.index = index
        self.count = count
        self.account = StageAccount(address)
        self.hung = False
        self._fresh = True
        self._known_epoch = 0
        self._channel = open_channel(address)
        self._stub = stage_pb2_grpc.StageServiceStub(self._channel)
        self._plans: Queue = asyncio.Queue(MAX_PLANS_QUEUED)
        self._orders: list[KvOrders] | None = None
        """What is queued behind the last plan; orders between two plans have one place in the queue."""
        self._phases: dict[int, tuple[Phase, float]] = {}
        """Of the steps that it was sent and that were not reported: and when they were sent."""
        self._done_step = 0
        self.on_fetched: Callable[[int, KvFetched], None] = lambda stage, fetched: None
        """Is told which fetches of this stage have ended."""
        self.on_done: Callable[[int, int], None] = lambda stage, step_id: None
        """Is told until which step this stage has done its part, once a second."""

    async def describe(self) -> StageAbout:
        """Ask the worker who it is.

        UnavailableError if it does not answer, IncompatibleError if it speaks another protocol version.
        """
        try:
            reply = await self._stub.DescribeStage(
                stage_pb2.DescribeStageRequest(), timeout=DESCRIBE_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise self._named(from_rpc_error(error)) from error
        self._check_shape(reply.shape)
        if reply.protocol_version != PROTOCOL_VERSION:
            raise IncompatibleError(
                f"stage {self.index} at {self.address} speaks protocol version "
                f"{reply.protocol_version}, this controller {PROTOCOL_VERSION}; "
                "install the same TidePipe version on both"
            )
        about = StageAbout(
            model=reply.model,
            fingerprint=reply.model_fingerprint,
            device=reply.device,
            dtype=reply.dtype,
            pid=reply.pid,
            shape=shape_from_wire(reply.shape),
            epoch=reply.epoch,
            fabric=FabricPort(reply.fabric, reply.fabric_device),
            adapters=adapters_from_wire(f"stage {self.index} at {self.address}", reply.adapters),
            reports_go_along=reply.reports_go_along,
        )
        if about.epoch < self._known_epoch:
            # What the kernel ends for memory can say nothing itself.
            self._fresh = True
            log.warning(
                "stage worker was replaced; if for memory, `dmesg` or the container's state tells",
                stage=self.index,
                address=self.address,
                pid=about.pid,
                last_seen_holding_mib=self.account.rss_bytes >> 20,
            )
        self._known_epoch = about.epoch
        self.account.about = about
        self.account.rss_bytes = reply.rss_bytes
        return about

    async def configure(self, setup: StageSetup) -> int:
        """Make the worker a stage of a new epoch; the KV blocks it has."""
        layer_begin, layer_end = setup.layers
        request = stage_pb2.ConfigureRequest(
            protocol_version=PROTOCOL_VERSION,
            model_fingerprint=setup.model_fingerprint,
            epoch=setup.epoch,
            controller_incarnation=setup.incarnation,
            stage_index=self.index,
            stage_count=self.count,
            layer_begin=layer_begin,
            layer_end=layer_end,
            block_size=setup.block_size,
            kv_blocks=setup.kv_blocks,
            next_stage_address=setup.next_address,
            max_step_tokens=setup.max_step_tokens,
            fabric_before=setup.fabric_before,
            fabric_after=setup.fabric_after,
            patience_s=HUNG_PATIENCE_S if self.hung else 0.0,
            reports_go_along=setup.reports_go_along,
        )
        try:
            reply = await self._stub.Configure(request, timeout=CONFIGURE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._named(from_rpc_error(error)) from error
        if fault := strange_number(reply):
            raise self._named(UnavailableError(f"its answer to Configure has {fault}, which cannot be"))
        self.hung = False
        self._known_epoch = setup.epoch
        # From here on plans may be queued for the new epoch.
        self._plans = asyncio.Queue(MAX_PLANS_QUEUED)
        self._orders = None
        self._phases.clear()
        self._done_step = 0
        self.account.layers = setup.layers
        self.account.rss_bytes = reply.rss_bytes
        self.account.slow_because = reply.slow_because
        self.account.kv_layout = reply.kv_layout
        self.account.kv_layer_block_bytes = reply.kv_layer_block_bytes
        self.account.kv_way_bytes_per_s = reply.kv_way_bytes_per_s
        self.account.offload = OffloadCapacity(
            reply.offload_slots, reply.offload_block_s, reply.offload_step_blocks
        )
        return reply.kv_blocks

    def _check_shape(self, shape: stage_pb2.ModelShape) -> None:
        """IncompatibleError for a model that cannot be."""
        for name in ("layers", "hidden", "heads", "kv_heads", "vocab_size", "context_length"):
            if not getattr(shape, name):
                raise self._named(IncompatibleError(f"it reports a model whose {name} is 0, which cannot be"))

    def begin_epoch(self) -> bool:
        """The epoch for which it was configured begins; True if it is this process's first.

        Told by the epochs that it knows: in containers each process has the id of the one before.
        """
        fresh, self._fresh = self._fresh, False
        return fresh

    def _named(self, error: TidePipeError) -> TidePipeError:
        """The same error, saying which stage it is about."""
        return type(error)(f"stage {self.index} at {self.address}: {error}")

    def send(self, plan: WirePlan) -> None:
        """Queue a plan; it is on its way before this stage needs it. asyncio.QueueFull if none are taken."""
        self._plans.put_nowait(plan)
        self._orders = None
        self._phases[plan.plan.step_id] = plan.plan.phase, time.monotonic()

    def order(self, orders: KvOrders) -> None:
        """Queue what it is to do with blocks that travel, between plans. asyncio.QueueFull: see `send`."""
        if self._orders is None:
            batch: list[KvOrders] = []
            self._plans.put_nowait(batch)
            self._orders = batch
        self._orders.append(orders)

    @property
    def open_steps(self) -> tuple[int, ...]:
        """Steps of the epoch that it was sent and has not done, as far as is known."""
        return tuple([step_id for step_id in self._phases if step_id > self._done_step])

    def _lost(self, detail: str) -> StageLostError:
        return StageLostError(f"stage {self.index} at {self.address}{detail}", open_steps=self.open_steps)

    async def run(self, epoch: int, report: Callable[[int, StepReport], None]) -> None:
        """Serve one epoch until cancelled: plans out, step reports to `report(stage index, report)`.

        Raises StageLostError when the stage fails, falls silent, or is taken over by a newer epoch. The
        stream has no deadline; the lease, renewed by each message, takes its place.
        """
        account, plans = self.account, self._plans
        call = self._stub.Run(self._requests(epoch, plans))
        account.alive, account.running_step = True, 0
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(LEASE_S) as lease:
                renewed = clock()
                while isinstance(message := await call.read(), stage_pb2.RunResponse):
                    if (now := clock()) - renewed > RENEWED_S:
                        renewed = now
                        lease.reschedule(now + LEASE_S)
                    if fault := self._fault(message):
                        raise self._lost(f": {fault}, which cannot be")
                    self._take(news_from_wire(message), report)
                raise self._lost(" ended the stream")
        except TimeoutError:
            raise self._lost(f" was silent for {LEASE_S:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise self._lost(f": {error.code().name}: {error.details()}") from error
        finally:
            account.alive = False
            call.cancel()
            # A call that the stage has ended leaves gRPC's task waiting for what it is to send next.
            with contextlib.suppress(asyncio.QueueFull):
                plans.put_nowait(None)

    def _fault(self, message: stage_pb2.RunResponse) -> str:
        """What it tells that cannot be true; "" if all can be."""
        if number := strange_number(message):
            return f"what it tells has {number}"
        if not message.HasField("step"):
            return ""
        before = message.step.before
        if before and len(before) != self.index:
            return f"it tells of {len(before)} stages before it"
        if number := next(filter(None, map(strange_number, before)), ""):
            return f"what it tells of stages before it has {number}"
        if (sent := self._phases.get(message.step.step_id)) is not None:
            took_s = max(message.step.compute_s, *(one.compute_s for one in before), 0.0)
            passed_s = time.monotonic() - sent[1]
            if took_s > (1.0 + CLOCKS_APART) * passed_s + CLOCKS_APART_S:
                return f"step {message.step.step_id}, sent {passed_s:.3g} s ago, took {took_s:.3g} s"
        return ""

    def _take(self, news: StageNews | None, report: Callable[[int, StepReport], None]) -> None:
        match news:
            case StepReport(step_id):
                self.reported(step_id, news.own)
                report(self.index, news)
            case Heartbeat(rss_bytes, running_step_id):
                self.account.rss_bytes, self.account.running_step = rss_bytes, running_step_id
                self._done(news.done_step_id)
            case KvFetched():
                self.on_fetched(self.index, news)
            case StageFailure(kind, failure, step_id):
                detail = f"stage {self.index} at {self.address}: {failure}"
                if kind is FailureKind.LINK:
                    raise NextStageLostError(detail)
                raise StageLostError(detail, step_id or None)

    def _done(self, until: int) -> None:
        if self.index == self.count - 1:
            return  # its steps are open until it has reported them
        self._done_step = until = min(until, max(self._phases, default=until))
        self.on_done(self.index, until)
        # So far behind there is nothing in flight: nobody will say what these took.
        for old in [one for one in self._phases if one + MAX_PLANS_QUEUED < until]:
            del self._phases[old]

    def reported(self, step_id: int, times: StageTimes) -> None:
        """What it took for a step is known, by itself or by the last stage."""
        phase, _ = self._phases.pop(step_id, (Phase.DECODE, 0.0))
        if phase is Phase.PREFILL:
            self.account.prefill_busy_s += times.compute_s
        else:
            self.account.decode_busy_s += times.compute_s
        self.account.plan_wait_s += times.plan_wait_s

    async def _requests(self, epoch: int, plans: Queue) -> AsyncIterator[stage_pb2.RunRequest]:
        yield stage_pb2.RunRequest(epoch=epoch)
        first, last = self.index == 0, self.index == self.count - 1
        while (plan := await plans.get()) is not None:
            if isinstance(plan, list):
                if plan is self._orders:
                    self._orders = None
                for orders in plan:
                    yield orders_to_wire(epoch, orders)
                continue
            for request in plan.requests(epoch, first=first, last=last):
                yield request

    async def close(self) -> None:
        """Give the channel back."""
        await self._channel.close()


def common_about(clients: list[StageClient], abouts: list[StageAbout]) -> StageAbout:
    """What all stages agree on; IncompatibleError naming the odd one out."""
    first = abouts[0]
    for client, about in zip(clients, abouts, strict=True):
        if about.fingerprint != first.fingerprint:
            raise IncompatibleError(
                f"stage {client.index} at {client.address} was started for model {about.model} "
                f"({about.fingerprint[:12]}), stage 0 at {clients[0].address} for {first.model} "
                f"({first.fingerprint[:12]}); start all stages with the same model"
            )
        if about.dtype != first.dtype:
            raise IncompatibleError(
                f"stage {client.index} at {client.address} computes in {about.dtype}, stage 0 in "
                f"{first.dtype}; start all stages with the same --dtype"
            )
        if different := set(about.adapters) ^ set(first.adapters):
            name = min(one.name for one in different)
            raise IncompatibleError(
                f"stage {client.index} at {client.address} and stage 0 at {clients[0].address} do not have "
                f"the same adapter {name}; start all stages with the same --lora, of the same content"
            )
    return first
