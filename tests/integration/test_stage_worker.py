"""The stage worker's RPC surface, over real gRPC with a backend that needs no model."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from controller.runtime.pipeline import Pipeline, PipelineConfig
from controller.runtime.stage_client import StageAbout, StageClient, StageLostError
from stage_worker.api.servicer import StageServicer
from stage_worker.executors.protocol import Executor, StageSpec
from tests.fakes.stage_backend import SHAPE, FakeBackend, FakeExecutor
from tidepipe.v1 import stage_pb2, stage_pb2_grpc
from tidepipe_common.codec.plan import WirePlan
from tidepipe_common.errors import IncompatibleError
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.types.plan import PROTOCOL_VERSION, Phase, PlanRow, StepPlan, StepReport
from tidepipe_common.types.token_mix import TokenMix

GOOD: dict[str, Any] = {
    "protocol_version": PROTOCOL_VERSION,
    "model_fingerprint": "f" * 64,
    "epoch": 7,
    "stage_index": 0,
    "stage_count": 1,
    "layer_begin": 0,
    "layer_end": SHAPE.layers,
    "block_size": 16,
    "max_step_tokens": 64,
}


@asynccontextmanager
async def worker(backend: FakeBackend) -> AsyncIterator[str]:
    """A stage worker in this process; its address."""
    server = RpcServer("127.0.0.1:0")
    servicer = StageServicer(backend)
    stage_pb2_grpc.add_StageServiceServicer_to_server(servicer, server.server)
    address = await server.start([stage_pb2.DESCRIPTOR.services_by_name["StageService"]])
    try:
        yield address
    finally:
        await servicer.close()
        await server.stop(0)


@asynccontextmanager
async def pipeline(*backends: FakeBackend) -> AsyncIterator[Pipeline]:
    """A controller's pipeline over one worker per backend."""
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(worker(backend)) for backend in backends]
        stages = Pipeline(PipelineConfig(tuple(addresses), 16, 0, 64, TokenMix()), "test")
        stack.push_async_callback(stages.close)
        yield stages


def plan(step_id: int, token: int = 5) -> StepPlan:
    return StepPlan(step_id, Phase.PREFILL, (PlanRow(1, 0, 3, (token, 6, 7), (0,), True),))


async def run_steps(stages: Pipeline, plans: list[StepPlan]) -> list[StepReport]:
    """Send plans, return what the last stage reports."""
    reports: list[StepReport] = []
    done = asyncio.Event()

    def report(stage: int, message: StepReport) -> None:
        if stage == len(stages.stages) - 1:
            reports.append(message)
            if len(reports) == len(plans):
                done.set()

    epoch = asyncio.create_task(stages.run_epoch(report))
    for one in plans:
        stages.send(one)
    waiting = asyncio.create_task(done.wait())
    await asyncio.wait({epoch, waiting}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if epoch.done():
        epoch.result()
    epoch.cancel()
    await asyncio.gather(epoch, return_exceptions=True)
    return reports


async def test_activations_pass_from_stage_to_stage_and_layers_are_split_by_cost() -> None:
    """Three stages add one each; a second epoch starts afresh and the older one is refused."""
    backends = [FakeBackend(), FakeBackend(), FakeBackend()]
    async with pipeline(*backends) as stages:
        assert await stages.bring_up() == 32
        reports = await run_steps(stages, [plan(1), plan(2), plan(3)])
        assert [list(report.sampled.token_ids) for report in reports if report.sampled] == [[3], [3], [3]]
        assert [(report.step_id, len(report.before)) for report in reports] == [(1, 2), (2, 2), (3, 2)]
        layers = [(b.specs[0].layer_begin, b.specs[0].layer_end) for b in backends]
        assert (layers[0][0], layers[-1]) == (0, (3, 4))  # the head weighs on the last stage

        first_epoch = stages.epoch
        await stages.bring_up()
        assert stages.epoch == first_epoch + 1
        async with open_channel(stages.stages[0].address) as channel:
            stub = stage_pb2_grpc.StageServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="is not the present one") as refused:
                await stub.Forward(iter([stage_pb2.ForwardRequest(epoch=first_epoch)]), timeout=5)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert len(await run_steps(stages, [plan(1)])) == 1


async def test_beside_an_older_stage_each_reports_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would not tell what those before it took."""
    describe = StageClient.describe

    async def older(client: StageClient) -> StageAbout:
        return replace(await describe(client), reports_go_along=client.index != 1)

    monkeypatch.setattr(StageClient, "describe", older)
    async with pipeline(FakeBackend(), FakeBackend()) as stages:
        await stages.bring_up()
        assert [report.before for report in await run_steps(stages, [plan(1), plan(2)])] == [(), ()]


async def test_an_ended_epoch_holds_nothing() -> None:
    """Its KV pool is gone at once, without Python's collector: a device has no room for two."""
    made: list[weakref.ref[FakeExecutor]] = []

    class Backend(FakeBackend):
        def configure(self, spec: StageSpec) -> Executor:
            assert all(one() is None for one in made), "the epoch before still has its memory"
            executor = FakeExecutor(spec)
            made.append(weakref.ref(executor))
            return executor

    gc.disable()
    try:
        async with pipeline(Backend()) as stages:
            for _ in range(3):
                await stages.bring_up()
                await run_steps(stages, [plan(1)])
    finally:
        gc.enable()
    assert len(made) == 3


async def test_who_gives_up_waiting_for_a_configuration_starts_no_second_one_beside_it() -> None:
    """Loading cannot be interrupted, and a device has no room for two; the next one waits its turn."""
    going, most = 0, 0
    begun, enough = threading.Event(), threading.Event()

    class Backend(FakeBackend):
        def configure(self, spec: StageSpec) -> Executor:
            nonlocal going, most
            going += 1
            most = max(most, going)
            begun.set()
            enough.wait(10)
            going -= 1
            return super().configure(spec)

    backend = Backend()
    async with worker(backend) as address, open_channel(address) as channel:
        stub = stage_pb2_grpc.StageServiceStub(channel)
        given_up = asyncio.ensure_future(stub.Configure(stage_pb2.ConfigureRequest(**GOOD), timeout=20))
        await asyncio.to_thread(begun.wait, 10)
        given_up.cancel()
        again = asyncio.ensure_future(
            stub.Configure(stage_pb2.ConfigureRequest(**(GOOD | {"epoch": 8})), timeout=20)
        )
        await asyncio.sleep(0.3)
        assert len(backend.specs) == 0, "the first one goes on"
        enough.set()
        await again
    assert (most, len(backend.specs)) == (1, 2)


async def test_a_failing_step_and_a_senseless_plan_end_the_epoch_with_their_reason() -> None:
    """The controller learns which step failed and why; the next epoch works."""
    async with pipeline(FakeBackend(), FakeBackend()) as stages:
        await stages.bring_up()
        with pytest.raises(StageLostError, match="token 99 always fails") as lost:
            await run_steps(stages, [plan(1), plan(2, token=99)])
        assert lost.value.failed_step == 2
        await stages.bring_up()
        with pytest.raises(StageLostError, match="step 1 was due, step 5 came"):
            await run_steps(stages, [plan(5)])
        await stages.bring_up()
        assert len(await run_steps(stages, [plan(1)])) == 1


async def test_stages_with_different_models_or_protocols_are_refused_by_name() -> None:
    """Both sides check, and say what to do."""
    async with pipeline(FakeBackend(), FakeBackend("e" * 64)) as stages:
        with pytest.raises(IncompatibleError, match="start all stages with the same model"):
            await stages.bring_up()
    async with worker(FakeBackend()) as address, open_channel(address) as channel:
        stub = stage_pb2_grpc.StageServiceStub(channel)
        for wrong, message in (
            ({"protocol_version": PROTOCOL_VERSION + 1}, "install the same TidePipe version"),
            ({"model_fingerprint": "0" * 64}, "start both with the same model"),
            ({"layer_end": SHAPE.layers + 1}, "not within"),
            ({"block_size": 0}, "block size"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=message) as refused:
                await stub.Configure(stage_pb2.ConfigureRequest(**(GOOD | wrong)), timeout=5)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await stub.Configure(stage_pb2.ConfigureRequest(**GOOD), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError, match="epoch 7 is over"):
            await stub.Configure(stage_pb2.ConfigureRequest(**GOOD), timeout=5)


async def test_what_no_controller_says_is_refused_and_the_epoch_goes_on() -> None:
    """Streams without a word, a second caller, numbers that cannot be, an epoch that none could follow."""

    async def ends(call: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await (call.read() if hasattr(call, "read") else call)
        return ended.value.code(), str(ended.value.details())

    invalid, precondition = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
    async with worker(FakeBackend()) as address, open_channel(address) as channel:
        stub = stage_pb2_grpc.StageServiceStub(channel)
        for wrong, code in (({"patience_s": math.nan}, invalid), ({"epoch": 2**64 - 1}, precondition)):
            request = stage_pb2.ConfigureRequest(**(GOOD | wrong))
            assert (await ends(stub.Configure(request, timeout=5)))[0] is code
        await stub.Configure(stage_pb2.ConfigureRequest(**GOOD), timeout=5)
        controller, before = stub.Run(timeout=20), stub.Forward(timeout=20)
        await controller.write(stage_pb2.RunRequest(epoch=7))
        assert (await controller.read()).HasField("heartbeat")
        await before.write(stage_pb2.ForwardRequest(epoch=7))
        hello, activations = stage_pb2.RunRequest(epoch=7), stage_pb2.ForwardRequest(epoch=7)
        for call, code, why in (
            (stub.Run(iter(()), timeout=5), invalid, "without a message"),
            (stub.Forward(iter(()), timeout=5), invalid, "without a message"),
            (stub.Run(iter([hello]), timeout=5), precondition, "has its controller already"),
            (stub.Forward(iter([activations]), timeout=5), precondition, "has its stage before already"),
        ):
            ended, details = await ends(call)
            assert ended is code and why in details
        for request in WirePlan(plan(1)).requests(7, first=True, last=True):
            await controller.write(request)
        while not (message := await controller.read()).HasField("step"):
            pass
        assert message.step.step_id == 1
        before.cancel()
        controller.cancel()
