"""Stages, brain and client on hosts of their own; cables pulled in the middle of a batch.

Needs root for network namespaces; skipped without.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.hosts import Host, Hosts, HostsUnavailableError, network_of_hosts
from bench.spread import SpreadCluster, spread_cluster
from launcher.config import ClusterConfig
from tests.tiny_models import VOCAB_SIZE, make_tiny_model
from tests.tiny_tokenizer import make_tokenizer

pytestmark = pytest.mark.timeout(300)

CUT_S = 6.0
LOAD = ("--vocabulary", str(VOCAB_SIZE), "--output", "350")


async def run_batch(
    cluster: SpreadCluster, client: Host, fault: Callable[[], None] | None, heal: Callable[[], None] | None
) -> list[list[int]]:
    """The answers to one batch, asked from the client's host; the fault comes while tokens flow."""
    load = await asyncio.create_subprocess_exec(
        *client.inside(sys.executable, "-m", "bench.spread_load", cluster.endpoint, *LOAD),
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    assert load.stdout is not None
    try:
        assert (await load.stdout.readline()).strip() == b"flowing"
        if fault and heal:
            fault()
            await asyncio.sleep(CUT_S)
            assert load.returncode is None, "the batch was over before the fault"
            heal()
        result: dict[str, list[list[int]]] = json.loads(await load.stdout.readline())
        assert await load.wait() == 0
        return result["tokens"]
    finally:
        if load.returncode is None:
            load.kill()
            await load.wait()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Brain, first stage, last stage, client."""
    try:
        with network_of_hosts(4) as network:
            yield network
    except HostsUnavailableError as error:
        pytest.skip(str(error))


async def test_cut_cables_change_no_answer(hosts: Hosts, tmp_path: Path) -> None:
    brain, first, last, client = hosts.hosts
    model = make_tiny_model("llama", tmp_path / "model")
    make_tokenizer(model)
    config = ClusterConfig(model=str(model), stages=2, dtype="float32", threads=1)
    async with spread_cluster(hosts, config, tmp_path) as cluster:
        undisturbed = await run_batch(cluster, client, None, None)
        for name, fault, heal in (
            ("a stage", lambda: hosts.cut(last), lambda: hosts.heal(last)),
            ("stage from stage", lambda: hosts.sever(first, last), lambda: hosts.rejoin(first, last)),
            ("stage from controller", lambda: hosts.sever(brain, last), lambda: hosts.rejoin(brain, last)),
            ("the client", lambda: hosts.cut(client), lambda: hosts.heal(client)),
        ):
            assert await run_batch(cluster, client, fault, heal) == undisturbed, name
