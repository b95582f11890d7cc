"""Router and instances over real gRPC: streaming, resuming, cancelling, refusing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.fakes.client import IDS, Heard, eventually, listen, request
from tests.fakes.controller import EOS, FakeController, fake_controller, scripted_text
from tests.fakes.router import RunningRouter, running_router
from tidepipe.v1 import admin_pb2, admin_pb2_grpc, router_pb2, router_pb2_grpc
from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import sampling_pb2 as sp
from tidepipe_common.rpc.channel import is_serving, open_channel, wait_serving
from tidepipe_common.rpc.status import RETRY_AFTER


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with fake_controller() as one:
        yield one


@pytest.fixture
async def router(controller: FakeController) -> AsyncIterator[RunningRouter]:
    async with running_router() as one:
        await controller.register(one.address)
        yield one


async def test_tokens_and_text_stream_with_their_end(
    router: RunningRouter, controller: FakeController
) -> None:
    heard = await listen(router, request("a", logprobs=0))
    assert heard.text == scripted_text(IDS, 40) and bytes(heard.tokens).decode() == heard.text
    assert heard.end.finish_reason == sp.FINISH_REASON_LENGTH
    usage = heard.end.usage
    assert (usage.prompt_tokens, usage.output_tokens) == (len(IDS), 40)
    assert 0 < usage.ttft_ms <= usage.total_ms
    controller.eos_at = 5
    ended = await listen(router, request("b", stop_token_ids=[7], min_tokens=1))
    assert (len(ended.tokens), ended.end.stop_token_id) == (5, EOS)
    sent = controller.submitted[-1].sampling
    assert list(sent.stop_token_ids) == [7] and sent.min_tokens == 1


async def test_negative_latency_targets_are_refused(router: RunningRouter) -> None:
    wanted = request("late")
    wanted.tpot_ms = -1
    with pytest.raises(grpc.aio.AioRpcError, match="tpot_ms must be in"):
        await listen(router, wanted)


async def test_many_answers_have_their_own_seeds(router: RunningRouter, controller: FakeController) -> None:
    answers = [Heard() for _ in range(3)]
    wanted = request("n", n=3, seed=11, temperature=1.0)
    async for message in router.stub.Generate(pb.GenerateRequest(request=wanted), timeout=20):
        answers[message.delta.index].take(message.delta)
    seeds = [spec.sampling.seed for spec in controller.submitted]
    assert seeds[0] == 11 and len(set(seeds)) == 3
    assert [answer.text for answer in answers] == [scripted_text(IDS, 40, seed) for seed in seeds]


async def test_stop_string_over_tokens_ends_both_sides(
    router: RunningRouter, controller: FakeController
) -> None:
    full = scripted_text(IDS, 40)
    stop = full[10:13]
    heard = await listen(router, request("s", stop=["zzz", stop], max_tokens=900))
    assert heard.text == full[: full.index(stop)]
    assert len(heard.tokens) == full.index(stop) + 3
    assert (heard.end.finish_reason, heard.end.stop_string) == (sp.FINISH_REASON_STOP, stop)
    await eventually(lambda: not controller.running())


async def test_same_id_attaches_and_a_break_is_resumed(
    router: RunningRouter, controller: FakeController
) -> None:
    wanted = request("r", grace_ms=5000, max_tokens=200)
    heard = await listen(router, wanted, until=20)
    heard, watcher = await asyncio.gather(listen(router, wanted, heard), listen(router, wanted))
    assert heard.text == watcher.text == scripted_text(IDS, 200)
    assert len(controller.submitted) == 1
    # Also when all is over, with Stream, and from the very end.
    again = Heard()
    async for message in router.stub.Stream(pb.StreamRequest(request_id="r"), timeout=5):
        again.take(message.delta)
    assert again.text == heard.text
    last = [
        piece
        async for piece in router.stub.Stream(
            pb.StreamRequest(request_id="r", resume=[heard.position]), timeout=5
        )
    ]
    assert [piece.delta.finish_reason for piece in last] == [sp.FINISH_REASON_LENGTH]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await listen(router, request("r", max_tokens=3))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_submit_then_stream_and_what_is_unknown(
    router: RunningRouter, controller: FakeController
) -> None:
    first = await router.stub.Submit(pb.SubmitRequest(request=request("q")), timeout=5)
    second = await router.stub.Submit(pb.SubmitRequest(request=request("q")), timeout=5)
    assert (first.prompt_tokens, first.attached, second.attached) == (len(IDS), False, True)
    heard = Heard()
    async for message in router.stub.Stream(pb.StreamRequest(request_id="q"), timeout=5):
        heard.take(message.delta)
    assert heard.text == scripted_text(IDS, 40)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await router.stub.Stream(pb.StreamRequest(request_id="nobody"), timeout=5).read()
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_cancel_and_disconnect_free_the_instance(
    router: RunningRouter, controller: FakeController
) -> None:
    stream = asyncio.create_task(listen(router, request("c", max_tokens=900)))
    await eventually(lambda: len(controller.running()) == 1)
    answer = await router.stub.Cancel(pb.CancelRequest(request_ids=["c", "unknown"]), timeout=5)
    assert answer.cancelled == 1
    assert (await stream).end.finish_reason == sp.FINISH_REASON_CANCELLED
    await eventually(lambda: not controller.running())
    # What was cut is no answer that could be fetched: asked again it starts anew.
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await router.stub.Stream(pb.StreamRequest(request_id="c"), timeout=5).read()
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await listen(router, request("c", max_tokens=50))).text == scripted_text(IDS, 50)

    await listen(router, request("d", max_tokens=900), until=3)
    await eventually(lambda: len(controller.cancelled) == 2 and not controller.running())

    call = router.stub.Generate(pb.GenerateRequest(request=request("late", max_tokens=900)), timeout=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        assert [piece async for piece in call]
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: len(controller.cancelled) == 3 and not controller.running())

    await listen(router, request("e", grace_ms=300, max_tokens=900), until=3)
    await asyncio.sleep(0.15)
    assert len(controller.running()) == 1, "it goes on during the grace"
    await eventually(lambda: not controller.running())


async def test_overload_is_told_at_once(controller: FakeController) -> None:
    async with running_router(max_requests=2) as router:
        await controller.register(router.address)
        controller.paused = True
        waiting = [asyncio.create_task(listen(router, request(f"w{i}"))) for i in range(2)]
        await eventually(lambda: len(controller.running()) == 2)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await listen(router, request("too much"))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(error.value.trailing_metadata() or ())[RETRY_AFTER]) > 0
        controller.paused = False
        await asyncio.gather(*waiting)
        await listen(router, request("now there is room"))


async def test_a_full_or_draining_instance_is_not_the_end(
    router: RunningRouter, controller: FakeController
) -> None:
    controller.room = 2
    controller.step_s = 0.001
    async with fake_controller(instance_id="i1", draining=True) as other:
        await other.register(router.address)
        answers = await asyncio.gather(*(listen(router, request(f"f{i}")) for i in range(10)))
        assert {answer.text for answer in answers} == {scripted_text(IDS, 40)}
        assert not other.submitted


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"sampling": sp.SamplingParams(temperature=-1.0)}, "temperature"),
    ({"sampling": sp.SamplingParams(max_tokens=0)}, "max_tokens"),
    ({"sampling": sp.SamplingParams(max_tokens=994)}, "you requested 1001 tokens (7 in the prompt"),
    ({"sampling": sp.SamplingParams(logit_bias={256: 1.0})}, "vocabulary ends at 255"),
    ({"text": ""}, "empty"),
    ({"text": "x" * 1000}, "1000 tokens"),
    ({"token_ids": pb.TokenIds()}, "empty"),
    ({"token_ids": pb.TokenIds(ids=[3, 256])}, "token id 256"),
    ({"chat": pb.Chat()}, "empty"),
    ({"chat": pb.Chat(messages=[pb.ChatMessage(role="tool", content="x")])}, "template"),
    ({"request_id": ""}, "request_id"),
    ({"request_id": "a\nb"}, "printable"),
    ({"disconnect_grace_ms": 600_001}, "disconnect_grace_ms"),
]


async def test_what_cannot_be_answered_is_refused(router: RunningRouter, controller: FakeController) -> None:
    for change, said in BAD_REQUESTS:
        wanted = request("bad")
        wanted.MergeFrom(pb.InferenceRequest(**change))
        for name in ("request_id", "text"):
            # Merging leaves out what is empty.
            if name in change:
                setattr(wanted, name, change[name])
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await listen(router, wanted)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT, change
        assert said in (error.value.details() or ""), change
    assert not controller.submitted


async def test_health_models_status_and_unknown_model(
    router: RunningRouter, controller: FakeController
) -> None:
    async with open_channel(router.address) as channel:
        await wait_serving(router.address, timeout=5)
        (model,) = (await router.stub.ListModels(pb.ListModelsRequest(), timeout=5)).models
        assert (model.name, model.context_length, model.fingerprint) == ("fake", 1000, "one")
        await listen(router, request("a"))
        wanted = request("m")
        wanted.model = "another"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await listen(router, wanted)
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        status = await admin.GetClusterStatus(admin_pb2.GetClusterStatusRequest(), timeout=5)
        assert (status.finished, status.failed, status.running, status.queued) == (1, 0, 0, 0)
        (entry,) = status.instances
        assert entry.connected and entry.status.serving and not status.HasField("predictor")
        await router_pb2_grpc.RouterServiceStub(channel).RemoveInstance(
            router_pb2.RemoveInstanceRequest(instance_id="i0"), timeout=5
        )
        await eventually(lambda: not router.service.registry.connected)
        assert not await is_serving(channel)
