"""Macro instances that split, merge, grow and shrink under load: nothing is lost, nothing is repeated."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from router.scheduler.events import HandOver
from tests.fakes.client import IDS, Heard, eventually, listen, request
from tests.fakes.controller import FakeController, fake_controller, scripted_text
from tests.fakes.router import RunningRouter, is_ready, running_router
from tidepipe.client.admin import AdminClient
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.errors import (
    ConfigError,
    IncompatibleError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)

TOKENS = 40
TEXT = scripted_text(IDS, TOKENS)


_LOADS = itertools.count()
FEW = 20
"""Requests that are no load yet."""


@contextlib.asynccontextmanager
async def load(router: RunningRouter, gap_s: float = 0.004) -> AsyncIterator[list[asyncio.Task[Heard]]]:
    """New requests all the time; at the end every one has its whole answer."""
    tasks: list[asyncio.Task[Heard]] = []
    names = f"l{next(_LOADS)}-r"  # the router keeps answers: one named as before would have that again

    async def arrive() -> None:
        while True:
            tasks.append(
                asyncio.create_task(listen(router, request(f"{names}{len(tasks)}", max_tokens=TOKENS)))
            )
            await asyncio.sleep(gap_s)

    arrivals = asyncio.create_task(arrive())
    try:
        yield tasks
        await eventually(lambda: len(tasks) >= FEW)  # on a busy machine these take a while
    finally:
        arrivals.cancel()
    answers = await asyncio.gather(*tasks)
    assert {answer.text for answer in answers} == {TEXT}


def groups(answer: dict[str, Any]) -> dict[str, list[str]]:
    """Names of the instances of each macro instance."""
    return {
        macro["macro_id"]: [member["instance_id"] for member in macro["members"]]
        for macro in answer["macros"]
    }


@contextlib.asynccontextmanager
async def cluster(
    count: int, *, hands_over: bool = False, **settings: Any
) -> AsyncIterator[tuple[RunningRouter, list[FakeController]]]:
    """A router and fake instances i0, i1, .. that it gives requests to."""
    async with contextlib.AsyncExitStack() as stack:
        router = await stack.enter_async_context(running_router(**settings))
        controllers = [
            await stack.enter_async_context(fake_controller(instance_id=f"i{number}", hands_over=hands_over))
            for number in range(count)
        ]
        for controller in controllers:
            await controller.register(router.address)
            await eventually(partial(is_ready, router, controller.instance_id))
        yield router, controllers


async def test_split_move_and_merge_under_load_disturb_nothing() -> None:
    async with (
        cluster(4, macro_min=2, macro_max=4, routing="padg") as (router, controllers),
        AdminClient(router.address) as admin,
    ):
        assert groups(await admin.groups()) == {"macro-1": ["i0", "i1", "i2", "i3"]}
        async with load(router):
            await asyncio.sleep(0.15)
            assert groups(await admin.split("macro-1", 1)) == {
                "macro-1": ["i0", "i1", "i2"],
                "macro-2": ["i3"],
            }
            await asyncio.sleep(0.1)
            moved = await admin.move("i2", macro_id="macro-2")
            assert groups(moved["groups"]) == {"macro-1": ["i0", "i1"], "macro-2": ["i3", "i2"]}
            # Its controller dies in the middle of all this and comes back without its sequences.
            await controllers[2].restart()
            await asyncio.sleep(0.1)
            merged = await admin.merge("macro-2", "macro-1")
            assert groups(merged) == {"macro-2": ["i3", "i2", "i0", "i1"]}
            await asyncio.sleep(0.1)
        assert sum(len(controller.submitted) for controller in controllers) >= 20
        with pytest.raises(NotFoundError, match="macro-9"):
            await admin.move("i0", macro_id="macro-9")
        with pytest.raises(IncompatibleError, match="split takes 1 to 3"):
            await admin.split("macro-2", 4)


async def test_an_instance_is_passed_on_to_another_router_while_it_works() -> None:
    """What it has goes on through the old router, what comes reaches it through the new one."""
    async with (
        cluster(2) as (old, [stays, leaves]),
        running_router() as new,
        AdminClient(old.address) as admin,
    ):
        async with load(old):
            await asyncio.sleep(0.1)
            await eventually(lambda: len(leaves.running()) > 0)
            running = {held.spec.sequence_id for held in leaves.running()}
            cancelled = len(leaves.cancelled)
            await admin.move("i1", router=new.address)
            [link] = [link for link in old.service.registry if link.instance_id == "i1"]
            on_their_way = {placement.placement_id for placement in link.placements}
            given = len(leaves.submitted)
            heard = await listen(new, request("there", max_tokens=TOKENS))
            assert heard.text == TEXT
            await asyncio.sleep(0.1)
        later = {spec.sequence_id for spec in leaves.submitted[given:]} - on_their_way
        assert [name.partition("/")[0] for name in later] == ["there"]
        # Nothing was moved or computed twice for it.
        assert running and len(leaves.cancelled) == cancelled
        assert old.service.dispatcher.moved == 0
        with pytest.raises(InvalidRequestError, match="HOST:PORT"):
            await admin.move("i0", router="nowhere")
        with pytest.raises(UnavailableError, match=r"router 127\.0\.0\.1:1 does not take it"):
            await admin.move("i0", router="127.0.0.1:1")
        given = len(stays.submitted)
        heard = await listen(old, request("here", max_tokens=TOKENS))
        assert heard.text == TEXT and len(stays.submitted) == given + 1, "it stays where it was"


async def test_prompts_are_computed_at_one_and_answers_go_on_at_others() -> None:
    """A fixed split: whoever decodes was given only what came with its blocks, behind a first token."""
    async with (
        cluster(3, hands_over=True, routing="roles", prefill_instances=1) as (router, [first, *others]),
        AdminClient(router.address) as admin,
    ):
        async with load(router):
            await eventually(lambda: sum(len(one.submitted) for one in others) > 20)
        came = [spec for one in others for spec in one.submitted]
        assert all(spec.HasField("kv") and spec.output_token_ids for spec in came)
        assert not any(spec.HasField("kv") for spec in first.submitted)
        assert min(len(one.submitted) for one in others) > 5
        [macro] = (await admin.groups())["macros"]
        told = [(one["prefill_share"], one["share_reason"].partition(" (")[0]) for one in macro["members"]]
        assert told == [(1.0, "a fixed split"), (0.0, "a fixed split"), (0.0, "a fixed split")]

        # The same of Arrow, which may have others come over; TaiChi has no kinds where all have one chunk.
        assert (await admin.policies(routing="arrow"))["routing"] == "arrow"
        with pytest.raises(IncompatibleError, match="all have the same"):
            await admin.policies(routing="taichi")
        assert (await admin.policies())["routing"] == "arrow"
        given = {one.instance_id: len(one.submitted) for one in (first, *others)}
        async with load(router):
            await asyncio.sleep(0.5)
        came = [spec for one in (first, *others) for spec in one.submitted[given[one.instance_id] :]]
        assert any(spec.HasField("kv") for spec in came)


async def test_sequences_move_with_their_blocks_where_they_are_wanted() -> None:
    """Of an instance that is drained, and by a policy's wish: each goes on elsewhere from where it was, and
    the instance that had it is told when its blocks are not needed any more."""
    async with (
        cluster(3, hands_over=True, routing="round-robin") as (router, controllers),
        AdminClient(router.address) as admin,
    ):
        first, second, third = controllers
        dispatcher = router.service.dispatcher
        async with load(router):
            await eventually(lambda: len(first.running()) > 4)
            begun = {held.spec.sequence_id for held in first.running()}
            counts = await admin.drain_counts("i0")
            assert counts["handed_over"] == counts["unfinished"] >= len(begun)
            await eventually(lambda: not first.running())
            left = {name: held for name, held in first.held.items() if held.kv is not None}
            assert left
            await eventually(lambda: set(left) <= set(first.cancelled))
            await asyncio.sleep(0.2)

        long = asyncio.create_task(listen(router, request("long", max_tokens=600)))
        await eventually(lambda: any(one.running() for one in (second, third)))
        source, target = (second, third) if second.running() else (third, second)
        key = next(iter(source.running())).spec.sequence_id.partition("@")[0]
        dispatcher._do(HandOver(key, source.instance_id, target.instance_id, "its place is there"))
        await eventually(lambda: any(s.sequence_id.startswith(key) for s in target.submitted))
        assert (await long).text == scripted_text(IDS, 600)
        came = [spec for one in (second, third) for spec in one.submitted if spec.HasField("kv")]
        assert {bytes(spec.kv.ticket) for spec in came} >= {
            bytes(held.kv.ticket) for held in left.values() if held.kv
        }
        for spec in came:
            assert spec.kv.computed_tokens == len(spec.prompt_token_ids) + len(spec.output_token_ids) - 1
        assert dispatcher.moved == 0, "nothing was lost"
        assert dispatcher.moved_with_blocks == len(came)


async def test_an_overall_router_spreads_over_macro_routers_and_survives_the_loss_of_one() -> None:
    """Two routers with two instances each, under one: tokens come through both hops, and nothing is lost."""
    async with running_router(routing="round-robin") as overall, contextlib.AsyncExitStack() as stack:
        controllers = []
        routers = []
        for name in ("a", "b"):
            router = await stack.enter_async_context(running_router(overall=overall.address, name=name))
            routers.append(router)
            for number in range(2):
                fake = fake_controller(instance_id=f"{name}{number}", step_s=0.01)
                controllers.append(await stack.enter_async_context(fake))
                await controllers[-1].register(router.address)
        for name in ("a", "b"):
            await eventually(partial(is_ready, overall, name))
        async with load(overall):
            await eventually(lambda: all(controller.running() for controller in controllers))
            routers[0].lifecycle.stopping.set()
            await asyncio.sleep(0.3)
        assert overall.service.dispatcher.moved > 0


async def test_a_bounded_queue_refuses_at_once_and_what_is_late_is_shed() -> None:
    """Over the bound: RESOURCE_EXHAUSTED with a hint, now. Late in the queue: the same, then."""
    targets = {"ttft_ms": 400.0, "tpot_ms": 100.0}
    async with cluster(1, routing="padg", **targets, max_pending=2) as (router, [controller]):
        controller.draining = True
        await eventually(lambda: not is_ready(router, "i0"))

        async def refused(name: str) -> tuple[str, float, int]:
            began = asyncio.get_running_loop().time()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await listen(router, request(name))
            metadata = dict(caught.value.trailing_metadata() or ())
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            took = asyncio.get_running_loop().time() - began
            return str(caught.value.details()), took, int(metadata["retry-after-ms"])

        late = [asyncio.create_task(refused(f"late{number}")) for number in range(2)]
        await eventually(lambda: len(router.service.dispatcher.scheduler.pending) == 2)
        text, _, retry_ms = await refused("over")
        assert "2 requests wait" in text and retry_ms >= 100
        for text, took, _ in await asyncio.gather(*late):
            assert "no instance could take the request" in text and took >= 0.15
        # None of them failed: each was told to come again.
        counts = router.service.table.counts
        assert (counts.shed, counts.failed, counts.finished) == (3, 0, 0)


async def test_policies_draining_and_scaling_by_rpc() -> None:
    async with cluster(2) as (router, [first, second]), AdminClient(router.address) as admin:
        assert (await admin.policies(routing="round-robin", instance="hybrid"))["routing"] == "round-robin"
        assert (first.policy, second.policy) == ("hybrid", "hybrid")
        with pytest.raises(IncompatibleError, match="known: auto, padg"):
            await admin.policies(routing="magic")
        assert await admin.drain("i0") == 0
        for number in range(6):
            await listen(router, request(f"r{number}"))
        assert (len(first.submitted), len(second.submitted)) == (0, 6)
        await admin.drain("i0", resume=True)
        await eventually(partial(is_ready, router, "i0"))
        for number in range(6):
            await listen(router, request(f"s{number}"))
        assert len(first.submitted) == 3
        with pytest.raises((ConfigError, IncompatibleError), match="provisioner"):
            await admin.scale("add", 1)
        with pytest.raises(NotFoundError, match="i0, i1"):
            await admin.drain("i7")


@pytest.mark.model
@pytest.mark.timeout(180)
async def test_real_processes_start_and_stop_under_load(model_path: Path) -> None:
    """Emulated workers: out to three instances, which splits; back to one, which merges; no request fails."""
    config = ClusterConfig(
        model=str(model_path), executor="emulated", policy="padg", macro_min=1, macro_max=2, kv_blocks=2000
    )
    async with LocalCluster(config) as local, AsyncClient(local.grpc_address) as client:
        admin = AdminClient(local.grpc_address)
        answers: list[asyncio.Task[int]] = []

        async def ask() -> int:
            prompt = list(range(100, 164))
            completion = await client.generate(prompt, max_tokens=30, ignore_eos=True, skip_text=True)
            return len(completion.token_ids)

        async def arrive() -> None:
            while True:
                answers.append(asyncio.create_task(ask()))
                await asyncio.sleep(0.1)

        async def until(count: int) -> dict[str, list[str]]:
            while True:
                state = await admin.groups()
                scaling = state["scaling"]
                found = groups(state)
                settled = not scaling["starting"] and not scaling["stopping"]
                if settled and sum(map(len, found.values())) == count:
                    return found
                await asyncio.sleep(0.1)

        arrivals = asyncio.create_task(arrive())
        async with admin, asyncio.timeout(150):
            await admin.scale("set", 3)
            assert [len(members) for members in (await until(3)).values()] == [2, 1]
            await admin.scale("remove", 2)
            assert [len(members) for members in (await until(1)).values()] == [1]
            arrivals.cancel()
            assert set(await asyncio.gather(*answers)) == {30}
        assert len(local.children) == 4


@pytest.mark.model
@pytest.mark.timeout(240)
async def test_a_load_that_one_instance_cannot_bear_brings_a_second_one(
    model_path: Path, tmp_path: Path
) -> None:
    """Automatic scaling: nothing at a low rate; when more come than it bears one is added, and none fails."""
    profile = tmp_path / "profile.csv"
    profile.write_text("tokens,ms\n1,20\n64,24\n256,120\n")
    config = ClusterConfig(
        model=str(model_path), executor="emulated", profile=str(profile), policy="padg",
        routing="least-loaded", ttft_ms=500,
    )  # fmt: skip
    async with LocalCluster(config) as local, AsyncClient(local.grpc_address) as client:
        answers: list[asyncio.Task[int]] = []

        async def ask() -> int:
            # Beginnings of their own, or they would be no load.
            prompt = [1000 + len(answers)] * 256
            completion = await client.generate(prompt, max_tokens=10, ignore_eos=True, skip_text=True)
            return len(completion.token_ids)

        async def instances(admin: AdminClient) -> int:
            return sum(map(len, groups(await admin.groups()).values()))

        async with AdminClient(local.grpc_address) as admin, asyncio.timeout(180):
            await admin.auto_scaling(True, 1, 2)
            for _ in range(4):
                answers.append(asyncio.create_task(ask()))
                await asyncio.sleep(0.4)
            assert not (await admin.groups())["scaling"]["starting"] and await instances(admin) == 1
            while await instances(admin) == 1:
                answers.append(asyncio.create_task(ask()))
                await asyncio.sleep(0.1)
            assert set(await asyncio.gather(*answers)) == {10}
            notes = (await admin.groups())["scaling"]["notes"]
        assert any("one more instance: " in note["text"] for note in notes)
