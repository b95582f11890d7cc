"""kill -9 of either side while sequences, beginnings of prompts, or blocks ahead of their sequences travel
from one instance to another: all complete, unchanged."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import count, pairwise

import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tests.cluster_logs import times_said
from tidepipe.client.admin import AdminClient
from tidepipe.client.async_client import AsyncClient

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

SEQUENCES = 20
TOKENS = 1500
AT_LAST = 300
"""Of those whose instance loses a stage for good."""
VICTIMS = os.environ.get("VICTIMS", "stage-worker-1-1,controller-0").split(",")
"""Of a hand-over from instance 0 to instance 1. All four kinds: VICTIMS=stage-worker-0-0,controller-1,.."""


LENDING = os.environ.get("LENDING", "stage-worker-0-0").split(",")
"""Victims while instance 1 borrows from instance 0. Else: stage-worker-1-0, controller-0, controller-1."""
BEGINNING = 3500
AHEAD = os.environ.get("AHEAD", "stage-worker-0-0,stage-worker-1-0").split(",")
"""Victims while instance 0 computes prompts whose blocks go ahead to instance 1. Else: controller-0, .."""


class Load:
    """Streams, and how many tokens have come."""

    def __init__(self, client: AsyncClient, count: int, length: int = TOKENS) -> None:
        self.length = length
        self.seen = [0] * count
        self.tasks = [asyncio.create_task(self._one(client, number)) for number in range(count)]

    async def _one(self, client: AsyncClient, number: int) -> tuple[int, ...]:
        tokens: list[int] = []
        prompt = [100 + number] * (200 + number)
        async with client.stream(prompt, temperature=0, max_tokens=self.length, ignore_eos=True) as stream:
            async for event in stream:
                tokens.extend(event.token_ids)
                self.seen[number] = len(tokens)
        return tuple(tokens)

    async def reach(self, count: int) -> None:
        while min(self.seen) < count:  # noqa: ASYNC110 (tasks of its own count)
            await asyncio.sleep(0.01)


async def drain_when_open(admin: AdminClient, name: str) -> int:
    """Have it hand its sequences over as soon as the other instance takes any."""
    while True:
        moved = (await admin.drain_counts(name))["handed_over"]
        if moved:
            return moved
        await asyncio.sleep(0.1)


async def test_either_side_may_die_while_blocks_are_on_their_way(model_path: object) -> None:
    """Emulated stages, whose blocks take a second over the link between the instances."""
    config = ClusterConfig(
        model=str(model_path),
        stages=2,
        instances=2,
        executor="emulated",
        kv_blocks=6000,
        kv_transfer="always",
        network_gbit=0.5,
    )
    async with (
        LocalCluster(config) as cluster,
        AsyncClient(cluster.grpc_address) as client,
        AdminClient(cluster.grpc_address) as admin,
    ):
        for victim in VICTIMS:
            await admin.drain("instance-1", finish=True)
            load = Load(client, SEQUENCES)
            await load.reach(100)
            await admin.drain("instance-1", resume=True)
            assert await drain_when_open(admin, "instance-0") == SEQUENCES
            await asyncio.sleep(0.3)
            child = next(child for child in cluster.children if child.name == victim)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            answers = await asyncio.gather(*load.tasks)
            assert [len(answer) for answer in answers] == [TOKENS] * SEQUENCES
            # Tokens depend on their position alone, and each prompt is one longer than the one before.
            for before, after in pairwise(answers):
                assert before[1:] == after[:-1], f"answers changed after killing {victim}"
            await admin.drain("instance-0", resume=True)
        await admin.drain("instance-1", resume=True)
        await leaves_dead_stages(cluster, client)


async def leaves_dead_stages(cluster: LocalCluster, client: AsyncClient) -> None:
    """A stage that is killed and not started again: what was there goes on at the other instance."""
    load = Load(client, SEQUENCES, AT_LAST)
    await load.reach(20)
    child = next(child for child in cluster.children if child.name == "stage-worker-0-1")
    # With SIGKILL, and its keeper gives it up.
    await child.stop(kill_after_s=0)
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*load.tasks)
    assert [len(answer) for answer in answers] == [AT_LAST] * SEQUENCES
    for before, after in pairwise(answers):
        assert before[1:] == after[:-1], "answers changed"


async def test_either_side_may_die_while_prompts_travel(model_path: object) -> None:
    """Blocks that go ahead, then beginnings that are borrowed. Emulated CPUs, whose blocks take a second over
    the link and five to be computed."""
    config = ClusterConfig(
        model=str(model_path),
        instances=2,
        executor="emulated",
        hardware="cpu",
        network_gbit=0.5,
        kv_blocks=4000,
        routing="roles",
        prefill_instances=1,
    )
    async with (
        LocalCluster(config) as cluster,
        AsyncClient(cluster.grpc_address) as client,
        AdminClient(cluster.grpc_address) as admin,
    ):

        async def ask(number: int, last: int) -> tuple[tuple[int, ...], int]:
            prompt = [100 + number] * BEGINNING + [last]
            done = await client.generate(prompt, temperature=0, max_tokens=8, ignore_eos=True)
            return done.answers[0].token_ids, done.usage.cached_tokens

        async def only(name: str) -> None:
            """That instance alone takes requests."""
            other = "instance-1" if name == "instance-0" else "instance-0"
            await admin.drain(name, resume=True)
            await admin.drain(other, finish=True)

        prompts = count(100)

        async def one_ahead_of_which_blocks_go() -> asyncio.Task[tuple[tuple[int, ...], int]]:
            """Asked again until both instances are there for it."""
            while True:
                before = times_said(cluster, "ahead of its sequence")
                asked = asyncio.create_task(ask(next(prompts), 7))
                while not asked.done():
                    if times_said(cluster, "ahead of its sequence") > before:
                        return asked
                    await asyncio.sleep(0.05)

        answers = set()
        for victim in AHEAD:
            asked = await one_ahead_of_which_blocks_go()
            await asyncio.sleep(0.5)
            child = next(child for child in cluster.children if child.name == victim)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            answers.add((await asked)[0])
        for number, victim in enumerate(["", *LENDING]):
            await only("instance-0")
            first, _ = await ask(number, 7)
            answers.add(first)
            assert len(answers) == 1, "tokens depend on their position alone"
            await only("instance-1")
            asked = asyncio.create_task(ask(number, 8))
            await asyncio.sleep(0.5)
            if victim:
                child = next(child for child in cluster.children if child.name == victim)
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
            answer, cached = await asked
            assert answer == first
            if victim in ("", "stage-worker-0-0"):  # else it may be fetched before, or again
                assert (cached > BEGINNING - 200) == (not victim)
