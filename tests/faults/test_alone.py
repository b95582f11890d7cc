"""A request that its stages cannot compute, or that ends or hangs them, fails alone; all others complete."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import launcher.instance as instance
from launcher.child import ChildSpec
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tests.fakes.faulty_worker import DIES, HANGS, ONCE, RAISES
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.errors import TidePipeError

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
NEIGHBOURS = 6
TOKENS = 300
SMALL = 8
LAST_STAGE = "stage-worker-0-1"

Answers = list[tuple[int, ...]]


@asynccontextmanager
async def faulty_cluster(model: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCluster]:
    """Two emulated stages, whose tokens depend on their positions alone."""
    make: Callable[..., ChildSpec] = instance.worker_spec

    def faulty(*arguments: object, **options: object) -> ChildSpec:
        return dataclasses.replace(make(*arguments, **options), module="tests.fakes.faulty_worker")

    monkeypatch.setattr(instance, "worker_spec", faulty)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = ClusterConfig(model=str(model), stages=2, executor="emulated", kv_blocks=400)
    async with LocalCluster(config) as cluster:
        yield cluster


async def neighbours(client: AsyncClient) -> Answers:
    """Answers of those who only want their answers."""
    answers = [
        client.generate([100 + i] * (5 + i), temperature=0, max_tokens=TOKENS, ignore_eos=True)
        for i in range(NEIGHBOURS)
    ]
    return [answer.token_ids for answer in await asyncio.gather(*answers)]


async def beside(client: AsyncClient, fault: int, *, first: bool) -> tuple[Answers, object]:
    """What becomes of the neighbours, and of a request with this fault at the first or last stage."""

    async def culprit() -> object:
        prompt = [fault if first else 7] * SMALL
        stops = () if first else (fault,)
        try:
            answer = await client.generate(
                prompt, temperature=0, max_tokens=40, ignore_eos=True, stop_token_ids=stops
            )
        except TidePipeError as error:
            return str(error)
        return answer.token_ids

    async with asyncio.TaskGroup() as group:
        running = group.create_task(neighbours(client))
        own = group.create_task(culprit())
    return running.result(), own.result()


async def test_a_request_that_breaks_kills_or_hangs_its_stage_fails_alone(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One cluster for all: starting one takes longer."""
    monkeypatch.setenv(ONCE, str(tmp_path / "hung"))
    async with (
        faulty_cluster(model_path, monkeypatch) as cluster,
        AsyncClient(cluster.grpc_address) as client,
    ):
        undisturbed = await neighbours(client)
        await what_breaks_or_kills_its_stage_fails_alone(cluster, client, undisturbed)
        await a_step_that_never_returns_is_noticed_and_its_process_replaced(cluster, client, undisturbed)


async def what_breaks_or_kills_its_stage_fails_alone(
    cluster: LocalCluster, client: AsyncClient, undisturbed: Answers
) -> None:
    """Whichever stage it is, whether the stage can say so or dies of it."""
    for fault, first, words in (
        (RAISES, True, "out of order"),
        (DIES, False, "cannot be computed"),
    ):
        answers, own = await beside(client, fault, first=first)
        assert answers == undisturbed
        assert isinstance(own, str) and words in own, own
    restarts = restarts_of(cluster)
    assert 0 < restarts.pop(LAST_STAGE) <= 5
    assert not any(restarts.values())


async def a_step_that_never_returns_is_noticed_and_its_process_replaced(
    cluster: LocalCluster, client: AsyncClient, undisturbed: Answers
) -> None:
    """Although the worker sends signs of life; then all answers come as ever."""
    before = restarts_of(cluster)
    answers, own = await beside(client, HANGS, first=False)
    assert answers == undisturbed
    assert isinstance(own, tuple) and len(own) == 40
    assert restarts_of(cluster) == {**before, LAST_STAGE: before[LAST_STAGE] + 1}


def restarts_of(cluster: LocalCluster) -> dict[str, int]:
    return {child.name: child.restart_count for child in cluster.children}
