"""Instances die, come back, lie about what they sent: clients see neither gap nor repeat."""

from __future__ import annotations

import asyncio
import random
import time

import grpc
import pytest

from tests.fakes.client import IDS, Heard, eventually, listen, request
from tests.fakes.controller import FakeController, fake_controller, scripted_text
from tests.fakes.router import RunningRouter, is_ready, running_router
from tidepipe.v1 import controller_pb2, sampling_pb2
from tidepipe.v1 import inference_pb2 as pb
from tidepipe_common.rpc.channel import wait_serving

TOKENS = 150


async def listen_to_many(router: RunningRouter, count: int) -> list[Heard]:
    return await asyncio.gather(
        *(listen(router, request(f"many{i}", max_tokens=TOKENS)) for i in range(count))
    )


async def halfway(controller: FakeController) -> None:
    await eventually(lambda: any(20 < len(held.tokens) < TOKENS - 20 for held in controller.held.values()))


async def test_controller_restarts_twice_mid_stream() -> None:
    async with fake_controller() as controller, running_router() as router:
        await controller.register(router.address)
        streams = asyncio.create_task(listen_to_many(router, 8))
        for _ in range(2):
            await halfway(controller)
            await controller.restart()
        answers = await streams
        assert {answer.text for answer in answers} == {scripted_text(IDS, TOKENS)}
        assert all(answer.end.usage.preemptions >= 1 for answer in answers)
        assert any(len(spec.output_token_ids) >= 20 for spec in controller.submitted)


async def test_controller_is_killed_for_good_and_another_takes_over() -> None:
    async with (
        fake_controller(instance_id="i0") as first,
        fake_controller(instance_id="i1") as second,
        running_router() as router,
    ):
        await first.register(router.address)
        await second.register(router.address)
        await eventually(lambda: is_ready(router, "i0") and is_ready(router, "i1"))
        streams = asyncio.create_task(listen_to_many(router, 8))
        await halfway(first)
        assert first.running() and second.running(), "both share the work"
        await first.register(router.address, lease_ms=600)
        await first.kill()
        answers = await streams
        assert {answer.text for answer in answers} == {scripted_text(IDS, TOKENS)}


async def test_a_frozen_controller_is_left_when_its_lease_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection stands, as when a network is cut, but nothing comes."""
    monkeypatch.setattr("router.instances.registry.PROBE_TIMEOUT_S", 0.2)
    async with (
        fake_controller(instance_id="i0") as first,
        fake_controller(instance_id="i1") as second,
        running_router() as router,
    ):
        await first.register(router.address, lease_ms=400)
        stream = asyncio.create_task(listen(router, request("x", max_tokens=TOKENS)))
        await halfway(first)
        first.paused = True
        first.silent = True
        await second.register(router.address)
        assert (await stream).text == scripted_text(IDS, TOKENS)
        assert len(second.submitted) == 1
        # Back again, it is told that nobody wants its sequence any more.
        first.silent = first.paused = False
        await first.register(router.address)
        await eventually(lambda: len(first.cancelled) > 0)


async def test_dead_stages_are_left_for_another_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun or not, whoever another one can serve; alone, they wait for them to come back."""
    monkeypatch.setattr("router.instances.dispatcher.DOWN_S", 0.3)
    async with (
        fake_controller(instance_id="i0", step_s=0.01) as first,
        fake_controller(instance_id="i1", context_length=200) as second,
        running_router() as router,
    ):
        await first.register(router.address)
        await eventually(lambda: is_ready(router, "i0"))
        streams = asyncio.create_task(listen_to_many(router, 4))
        long = asyncio.create_task(listen(router, request("long", max_tokens=400)))
        await halfway(first)
        first.paused = first.stages_down = True
        await asyncio.sleep(0.6)
        assert len(first.running()) == 5 and not first.cancelled
        await second.register(router.address)
        answers = await streams
        assert {answer.text for answer in answers} == {scripted_text(IDS, TOKENS)}
        assert len(second.submitted) == 4 and any(spec.output_token_ids for spec in second.submitted)
        await eventually(lambda: len(first.cancelled) == 4)
        assert not long.done()
        first.paused = first.stages_down = False
        assert (await long).text == scripted_text(IDS, 400)


async def test_what_one_instance_cannot_do_another_does() -> None:
    """Also while the one that can is away: it is waited for, and others go on meanwhile."""
    async with (
        fake_controller(instance_id="weak", lacks=("logprobs",)) as weak,
        fake_controller(instance_id="able", step_s=0.01) as able,
        running_router(routing="round-robin") as router,
    ):
        await weak.register(router.address)
        await eventually(lambda: is_ready(router, "weak"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await listen(router, request("nobody", logprobs=1))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no instance here does this for a request: logprobs" in str(refused.value.details())
        await able.register(router.address)
        await eventually(lambda: is_ready(router, "able"))
        wanting = [
            asyncio.create_task(listen(router, request(f"want{i}", max_tokens=TOKENS, logprobs=1)))
            for i in range(6)
        ]
        await halfway(able)
        await able.kill()
        await eventually(lambda: not is_ready(router, "able"))
        assert (await listen(router, request("other", max_tokens=TOKENS))).text == scripted_text(IDS, TOKENS)
        await able.start()
        assert {(await one).text for one in wanting} == {scripted_text(IDS, TOKENS)}
        assert not any(spec.sampling.HasField("logprobs") for spec in weak.submitted)


@pytest.mark.parametrize("trouble", ["repeats", "gaps", "breaks"])
async def test_results_arrive_in_a_mess(trouble: str) -> None:
    chance = random.Random(4)

    def mangle(updates: list[controller_pb2.SequenceUpdate]) -> list[controller_pb2.SequenceUpdate]:
        if trouble == "gaps":
            return [update for update in updates if update.finish_reason or chance.random() > 0.03]
        if trouble == "breaks":
            if chance.random() < 0.05:
                controller.end_watches()
            return updates
        again = []
        for update in updates:
            held = controller.held[update.sequence_id]
            begin = max(len(held.spec.output_token_ids), update.token_offset - chance.randrange(4))
            again += [held.update(begin)] * chance.choice([1, 2])
        return again

    async with fake_controller(step_s=0.001) as controller, running_router() as router:
        controller.mangle = mangle
        await controller.register(router.address)
        answers = await listen_to_many(router, 4)
        assert {answer.text for answer in answers} == {scripted_text(IDS, TOKENS)}
        assert len(controller.submitted) == 4, "all of it is mended without starting over"


async def test_what_the_instance_cancels_unasked_goes_on() -> None:
    async with fake_controller() as controller, running_router() as router:
        await controller.register(router.address)
        stream = asyncio.create_task(listen(router, request("x", max_tokens=TOKENS)))
        await halfway(controller)
        (held,) = controller.running()
        held.finish = sampling_pb2.FINISH_REASON_CANCELLED
        assert (await stream).text == scripted_text(IDS, TOKENS)


async def test_requests_wait_for_an_instance_but_not_for_ever() -> None:
    async with fake_controller() as controller, running_router(patience_s=0.5) as router:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await listen(router, request("too early"))
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        stream = asyncio.create_task(listen(router, request("early")))
        await asyncio.sleep(0.1)
        await controller.register(router.address)
        assert (await stream).text == scripted_text(IDS, 40)
        # The same when all instances have gone, with a request under way.
        await controller.register(router.address, lease_ms=100)
        stream = asyncio.create_task(listen(router, request("late", max_tokens=TOKENS)))
        await halfway(controller)
        await controller.kill()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_another_model_is_refused() -> None:
    async with (
        fake_controller(instance_id="i0") as first,
        fake_controller(instance_id="i1", fingerprint="two") as second,
        fake_controller(instance_id="i2", vocab_size=100) as third,
        running_router() as router,
    ):
        await first.register(router.address)
        for other in (second, third):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await other.register(router.address)
            assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        # Coming back with another model is found out; sequences wait for the right one.
        stream = asyncio.create_task(listen(router, request("x", max_tokens=TOKENS)))
        await halfway(first)
        first.fingerprint = "two"
        await first.restart()
        await eventually(lambda: not len(router.service.registry))
        first.fingerprint = "one"
        await first.restart()
        await first.register(router.address)
        assert (await stream).text == scripted_text(IDS, TOKENS)


async def test_stopping_lets_streams_end_and_refuses_new_ones() -> None:
    async with fake_controller(step_s=0.005) as controller, running_router(stop_grace_s=5.0) as router:
        await controller.register(router.address)
        await wait_serving(router.address, timeout=5)
        stream = asyncio.create_task(listen(router, request("x", max_tokens=TOKENS)))
        await halfway(controller)
        began = time.monotonic()
        router.lifecycle.stopping.set()
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await router.stub.Submit(pb.SubmitRequest(request=request("y")), timeout=5)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await stream).text == scripted_text(IDS, TOKENS)
        assert time.monotonic() - began < 4
