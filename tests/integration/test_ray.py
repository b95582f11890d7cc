"""Instances on a real Ray cluster of several nodes (all on this machine)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.admin import AdminClient
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.errors import InvalidRequestError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tidepipe[ray]'")

pytestmark = [pytest.mark.model, pytest.mark.timeout(400)]


@pytest.fixture
def ray_cluster() -> Iterator[Any]:
    """Two nodes of one CPU each, beside a head that has none to give."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


async def test_an_instance_spans_nodes_and_scaling_waits_for_room(
    model_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages on two nodes; no room for a second instance, until a node joins; nothing is left behind."""
    config = ClusterConfig(
        model=str(model_path),
        executor="emulated",
        stages=2,
        threads=1,
        kv_blocks=500,
        provisioner="ray",
        insecure=True,  # the nodes' address is not the loopback one
        ray_address=ray_cluster.address,
    )
    async with (
        LocalCluster(config) as local,
        AsyncClient(local.grpc_address) as client,
        AdminClient(local.grpc_address) as admin,
    ):
        completion = await client.generate([5, 6, 7], max_tokens=6, ignore_eos=True, skip_text=True)
        assert len(completion.token_ids) == 6
        nodes = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU")}
        [instance] = local.provisioned()
        assert sum(node[:8] in instance.place for node in nodes) == 2

        async def noted(text: str) -> None:
            notes: list[str] = []
            try:
                async with asyncio.timeout(120):
                    while not any(text in note for note in notes):
                        await asyncio.sleep(0.2)
                        notes = [note["text"] for note in (await admin.groups())["scaling"]["notes"]]
            except TimeoutError:
                pytest.fail(f"no note says {text!r}; they say: {notes}")

        with monkeypatch.context() as patch:
            patch.setattr("launcher.provision.ray.PLACE_TIMEOUT_S", 3.0)
            with pytest.raises(InvalidRequestError, match="room for 0 more"):
                await admin.scale("add", 1)
            await admin.scale("add", 1, force=True)
            await noted("no room for 2 x {'CPU': 1.0}")
        # What was asked for is kept, and tried again.
        ray_cluster.add_node(num_cpus=2)
        await noted("serves at")
        await admin.scale("remove", 1)
        await noted("has been stopped")
        # Ray's nodes are children of this process, and the machine may have clusters of other tests.
        running = psutil.Process().children(recursive=True)
        processes = [process for process in running if _is_ours(process, model_path)]
        assert len(processes) == 2
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def _is_ours(process: psutil.Process, model_path: Path) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return False
    return "stage_worker" in command and str(model_path) in command and "emulated" in command
