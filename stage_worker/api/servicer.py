"""StageService: who this worker is, epochs, plans in and reports out, activations in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import structlog

from stage_worker.epoch import STOP_TIMEOUT_S, Epoch, QueueOverflowError, StuckError, WorkAccount
from stage_worker.executors.protocol import Backend, Executor, StageSpec
from stage_worker.sequence_spans import SequenceSpans
from tidepipe.v1 import stage_pb2, stage_pb2_grpc
from tidepipe_common.codec.adapters import adapters_to_wire
from tidepipe_common.codec.kv_transfer import orders_from_wire, piece_to_wire, wanted_from_wire
from tidepipe_common.codec.numbers import strange_number
from tidepipe_common.codec.plan import StartsAhead, news_to_wire, plan_from_wire, times_from_wire
from tidepipe_common.codec.shape import shape_to_wire
from tidepipe_common.errors import IncompatibleError, InvalidRequestError, UnavailableError
from tidepipe_common.limits import MESSAGE_BYTES
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.settings.defaults import MAX_BLOCK_SIZE, MAX_STEP_TOKENS
from tidepipe_common.telemetry.traces import NO_TRACES, Traces
from tidepipe_common.types.kv_transfer import MOST_LEASE_S
from tidepipe_common.types.plan import PROTOCOL_VERSION, Heartbeat, StageNews

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

HEARTBEAT_S = 1.0
HELLO_S = 10.0
"""For the first message of a stream, which its caller has when it begins."""
LONGEST_PATIENCE_S = 600.0
EPOCH_LEAP = 2**32
"""A new epoch is at most so far above the one before: else one message uses up all that can follow."""

EXIT_STUCK = 5

log = structlog.get_logger()


def max_message_bytes(width: int, dtype: str) -> int:
    """Size of the largest activations message, with room for its other fields; plans are never larger
    than other messages between services. width: values of a token."""
    return max(MESSAGE_BYTES, MAX_STEP_TOKENS * width * (4 if dtype == "float32" else 2) + 1024 * 1024)


def _end_process() -> None:
    # Not sys.exit: the interpreter's own end would wait for what is stuck.
    os._exit(EXIT_STUCK)


async def start_serving(server: RpcServer, servicer: StageServicer) -> str:
    """Answer StageService at the server's address, HOST:PORT, which is returned."""
    stage_pb2_grpc.add_StageServiceServicer_to_server(servicer, server.server)
    return await server.start([stage_pb2.DESCRIPTOR.services_by_name["StageService"]])


class StageServicer(stage_pb2_grpc.StageServiceServicer):
    """One worker; at most one epoch at a time, the newest."""

    def __init__(
        self, backend: Backend, end_process: Callable[[], None] = _end_process, traces: Traces = NO_TRACES
    ) -> None:
        """end_process: called when a step does not return, to be started anew by whoever watches it."""
        self._backend = backend
        self._end_process = end_process
        self._traces = traces
        self._epoch: Epoch | None = None
        self._newest = 0
        self._configuring = asyncio.Lock()
        self._process = psutil.Process()
        self.account = WorkAccount()

    @property
    def newest_epoch(self) -> int:
        """Number of the newest epoch, 0 before the first."""
        return self._newest

    @property
    def running(self) -> tuple[int, float]:
        """The step that is being computed, and for how long, seconds; zeros if none is."""
        return (0, 0.0) if self._epoch is None else self._epoch.running

    @property
    def slow(self) -> bool:
        """True if it computes several times slower than it could; see BackendDescription."""
        return bool(self._backend.description.slow_because)

    @property
    def executor(self) -> Executor | None:
        """What computes in the present epoch."""
        return None if self._epoch is None else self._epoch.executor

    async def DescribeStage(  # noqa: N802 (the contract's name)
        self, request: stage_pb2.DescribeStageRequest, context: Context
    ) -> stage_pb2.DescribeStageResponse:
        """See stage.proto."""
        about = self._backend.description
        return stage_pb2.DescribeStageResponse(
            protocol_version=PROTOCOL_VERSION,
            model=about.model,
            model_fingerprint=about.fingerprint,
            device=about.device,
            dtype=about.dtype,
            memory_budget_bytes=about.memory_budget,
            pid=os.getpid(),
            shape=shape_to_wire(about.shape),
            rss_bytes=self._rss(),
            epoch=self._newest,
            fabric=about.fabric,
            fabric_device=about.fabric_device,
            adapters=adapters_to_wire(about.adapters),
            reports_go_along=True,
        )

    async def Configure(  # noqa: N802
        self, request: stage_pb2.ConfigureRequest, context: Context
    ) -> stage_pb2.ConfigureResponse:
        """See stage.proto."""
        self._check(request)
        async with self._configuring:
            if request.epoch <= self._newest:
                raise IncompatibleError(f"epoch {request.epoch} is over; {self._newest} has begun since")
            self._newest = request.epoch
            if self._epoch is not None:
                patience_s = min(request.patience_s or STOP_TIMEOUT_S, LONGEST_PATIENCE_S)
                await self._ended(self._epoch, patience_s)
                self._epoch = None
            spec = StageSpec(
                index=request.stage_index,
                count=request.stage_count,
                layer_begin=request.layer_begin,
                layer_end=request.layer_end,
                block_size=request.block_size,
                kv_blocks=request.kv_blocks,
                max_step_tokens=request.max_step_tokens,
                fabric_before=request.fabric_before,
                fabric_after=request.fabric_after,
            )
            executor = await self._configured(spec)
            about = self._backend.description
            self._epoch = Epoch(
                request.epoch,
                spec,
                executor,
                request.next_stage_address,
                max_message_bytes(about.activation_width, about.dtype),
                self.account,
                SequenceSpans(self._traces, spec.index, spec.count),
                reports_go_along=request.reports_go_along,
            )
        log.info(
            "configured",
            epoch=request.epoch,
            stage=f"{spec.index + 1}/{spec.count}",
            layers=f"{spec.layer_begin}..{spec.layer_end - 1}",
            kv_blocks=executor.kv_blocks,
            weights_mib=executor.weight_bytes >> 20,
        )
        return stage_pb2.ConfigureResponse(
            kv_blocks=executor.kv_blocks,
            weight_bytes=executor.weight_bytes,
            kv_bytes=executor.kv_bytes,
            rss_bytes=self._rss(),
            offload_slots=executor.offload.slots,
            offload_block_s=executor.offload.block_s,
            offload_step_blocks=executor.offload.step_blocks,
            kv_layout="" if executor.kv is None else executor.kv.layout,
            kv_layer_block_bytes=0 if executor.kv is None else executor.kv.layer_block_bytes,
            kv_way_bytes_per_s=0 if executor.kv is None else executor.kv.way_bytes_per_s,
            slow_because=self._backend.description.slow_because,
        )

    async def _ended(self, epoch: Epoch, patience_s: float) -> None:
        """Who gives up waits for it as well: the next one would find its memory taken."""
        ending = asyncio.create_task(self._end_epoch(epoch, patience_s), name="end the epoch")
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.gather(ending, return_exceptions=True)
            raise

    async def _configured(self, spec: StageSpec) -> Executor:
        """Off the event loop. Nobody can stop the thread, so who gives up waits for it: a second one beside
        it would find the device's memory taken."""
        work = asyncio.create_task(asyncio.to_thread(self._backend.configure, spec))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            try:
                (await work).close()
            except Exception as error:
                log.warning("a configuration that nobody waits for any more failed", reason=repr(error))
            raise

    def _check(self, request: stage_pb2.ConfigureRequest) -> None:
        about = self._backend.description
        if fault := strange_number(request):
            raise InvalidRequestError(f"{fault} cannot be")
        if request.epoch > self._newest + EPOCH_LEAP:
            raise IncompatibleError(
                f"epoch {request.epoch} cannot follow {self._newest}: no controller has begun so many"
            )
        if request.protocol_version != PROTOCOL_VERSION:
            raise IncompatibleError(
                f"the controller speaks protocol version {request.protocol_version}, this worker "
                f"{PROTOCOL_VERSION}; install the same TidePipe version on both"
            )
        if request.model_fingerprint != about.fingerprint:
            raise IncompatibleError(
                f"this worker was started for model {about.model} ({about.fingerprint[:12]}), the controller "
                f"serves another one ({request.model_fingerprint[:12]}); start both with the same model"
            )
        layers = about.shape.layers
        if not (0 <= request.layer_begin < request.layer_end <= layers):
            raise IncompatibleError(
                f"layers {request.layer_begin}..{request.layer_end} are not within 0..{layers}"
            )
        if not (0 <= request.stage_index < request.stage_count):
            raise IncompatibleError(f"stage {request.stage_index} of {request.stage_count} makes no sense")
        if not (
            1 <= request.block_size <= MAX_BLOCK_SIZE and 1 <= request.max_step_tokens <= MAX_STEP_TOKENS
        ):
            raise IncompatibleError(
                f"block size {request.block_size} must be in [1, {MAX_BLOCK_SIZE}] and tokens per step "
                f"{request.max_step_tokens} in [1, {MAX_STEP_TOKENS}]"
            )

    async def Run(  # noqa: N802
        self, request_iterator: AsyncIterator[stage_pb2.RunRequest], context: Context
    ) -> AsyncIterator[stage_pb2.RunResponse]:
        """See stage.proto."""
        epoch = self._current((await _first(request_iterator)).epoch)
        release = epoch.take("controller")
        epoch.start()
        # Everything that ends or interrupts the wait comes through the one queue: a step's report costs one
        # wake-up, which matters when a step takes a few milliseconds on a core that has to compute as well.
        reports = epoch.reports
        ended = asyncio.create_task(_tell_when(epoch.ended, reports), name="epoch-ended")
        reader = asyncio.create_task(self._read_plans(epoch, request_iterator), name="plans")
        reader.add_done_callback(lambda _: reports.put_nowait(None))
        heart = asyncio.create_task(self._beat(epoch), name="heartbeat")
        try:
            while not epoch.ended.is_set():
                report = await reports.get()
                if report is not None:
                    yield news_to_wire(report)
                elif reader.done():
                    reader.result()  # raises what went wrong; else the controller has left
                    return
            raise IncompatibleError(f"epoch {epoch.number} is over; {self._newest} has begun since")
        finally:
            release()
            for task in (reader, ended, heart):
                task.cancel()
            await asyncio.gather(reader, ended, heart, return_exceptions=True)

    async def _beat(self, epoch: Epoch) -> None:
        # Also between reports: they say nothing of memory.
        while True:
            step_id, seconds = epoch.running
            epoch.reports.tell(Heartbeat(self._rss(), step_id, seconds, epoch.done_step))
            await asyncio.sleep(HEARTBEAT_S)

    async def _read_plans(self, epoch: Epoch, requests: AsyncIterator[stage_pb2.RunRequest]) -> None:
        ahead = StartsAhead()
        async for request in requests:
            self._require(epoch, request.epoch)
            try:
                ahead.add(request.starts)
            except ValueError as error:
                raise IncompatibleError(str(error)) from error
            try:
                if (orders := orders_from_wire(request)) is not None:
                    epoch.transfers.order(orders)
            except ValueError as error:
                raise IncompatibleError(f"KV blocks that travel: {error}") from error
            if not request.HasField("plan"):
                continue
            try:
                epoch.add_plan(plan_from_wire(request.plan, ahead.take()))
            except (QueueOverflowError, ValueError) as error:
                raise IncompatibleError(f"plan of step {request.plan.step_id}: {error}") from error

    async def Forward(  # noqa: N802
        self, request_iterator: AsyncIterator[stage_pb2.ForwardRequest], context: Context
    ) -> stage_pb2.ForwardResponse:
        """See stage.proto."""
        epoch = self._current((await _first(request_iterator)).epoch)
        steps = 0
        release = epoch.take("stage before")
        try:
            async for request in request_iterator:
                await epoch.room(len(request.hidden))
                self._require(epoch, request.epoch)
                if len(request.before) not in (0, epoch.spec.index):
                    told, here = len(request.before), epoch.spec.index
                    raise IncompatibleError(f"times of {told} stages came along, {here} are before this one")
                try:
                    epoch.add_activation(request.step_id, request.hidden, times_from_wire(request.before))
                except QueueOverflowError as error:
                    raise IncompatibleError(str(error)) from error
                steps += 1
        finally:
            release()
        return stage_pb2.ForwardResponse(steps=steps)

    async def FetchBlocks(  # noqa: N802
        self, request: stage_pb2.FetchBlocksRequest, context: Context
    ) -> AsyncIterator[stage_pb2.FetchBlocksResponse]:
        """See stage.proto."""
        epoch = self._current(request.epoch)
        # No grant stands for longer; who takes nothing holds a place among those that are served.
        async with asyncio.timeout(MOST_LEASE_S):
            async for piece in epoch.transfers.serve(wanted_from_wire(request)):
                self._require(epoch, request.epoch)
                yield piece_to_wire(piece)

    def _current(self, number: int) -> Epoch:
        if self._epoch is None or self._epoch.number != number:
            raise IncompatibleError(f"epoch {number} is not the present one ({self._newest})")
        return self._epoch

    def _require(self, epoch: Epoch, number: int) -> None:
        if epoch.ended.is_set() or number != epoch.number:
            raise IncompatibleError(f"epoch {number} is not the present one ({self._newest})")

    def _rss(self) -> int:
        return int(self._process.memory_info().rss)

    async def _end_epoch(self, epoch: Epoch, patience_s: float) -> None:
        try:
            await epoch.end(patience_s)
        except StuckError as error:
            log.error("a step hangs, this process ends", reason=str(error))
            self._end_process()
            raise UnavailableError(f"{error}; this worker must be started anew") from error

    async def close(self) -> None:
        """Stop the present epoch."""
        async with self._configuring:
            if self._epoch is not None:
                try:
                    await self._epoch.end()
                except Exception as error:
                    log.warning("the epoch did not end well", epoch=self._epoch.number, reason=repr(error))
                self._epoch = None


Request = TypeVar("Request")


async def _first(requests: AsyncIterator[Request]) -> Request:
    """The message that opens a stream. InvalidRequestError: there is none, or it does not come."""
    try:
        async with asyncio.timeout(HELLO_S):
            return await anext(requests)
    except StopAsyncIteration:
        raise InvalidRequestError("the call ended without a message") from None
    except TimeoutError:
        raise InvalidRequestError(f"the call brought no message within {HELLO_S:g} s") from None


async def _tell_when(happened: asyncio.Event, reports: asyncio.Queue[StageNews | None]) -> None:
    await happened.wait()
    reports.put_nowait(None)
