"""A conversation finds the instance that has computed its beginning, without cookies: over real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe.v1 import admin_pb2, admin_pb2_grpc
from tidepipe_common.rpc.channel import open_channel

pytestmark = [pytest.mark.model, pytest.mark.timeout(120)]


@pytest.mark.parametrize("routing", ["prefix", "padg"])
async def test_a_conversation_goes_on_where_it_began(model_path: Path, tmp_path: Path, routing: str) -> None:
    """Its second turn goes there, though it would have been the other one's turn; many that begin so go to
    both, for the queue at one of them would take longer than computing it again."""
    profile = tmp_path / "profile.csv"
    profile.write_text("tokens,ms\n1,20\n64,30\n256,120\n")
    config = ClusterConfig(
        model=str(model_path), executor="emulated", profile=str(profile), instances=2, routing=routing,
        policy="padg" if routing == "padg" else "auto",
    )  # fmt: skip
    history = list(range(100, 740))
    async with (
        LocalCluster(config) as cluster,
        AsyncClient(cluster.grpc_address) as client,
        open_channel(cluster.grpc_address) as channel,
    ):
        admin = admin_pb2_grpc.AdminServiceStub(channel)

        async def ask(prompt: list[int], tokens: int = 3) -> None:
            await client.generate(prompt, max_tokens=tokens, ignore_eos=True, skip_text=True)

        async def finished() -> dict[str, int]:
            status = await admin.GetClusterStatus(admin_pb2.GetClusterStatusRequest(), timeout=5)
            return {one.status.instance_id: one.status.finished for one in status.instances}

        # Somebody is at the first instance, and for long, so that the conversation begins at the other.
        other = asyncio.create_task(ask(list(range(2000, 3500)), 100))
        await asyncio.sleep(0.2)
        before = await finished()
        await asyncio.wait_for(ask(history), 30)
        (home,) = (name for name, count in (await finished()).items() if count > before[name])
        await other
        for turn in range(2, 4):
            before = await finished()
            await ask(history + list(range(turn * 1000, turn * 1000 + 100 * turn)))
            assert [name for name, count in (await finished()).items() if count > before[name]] == [home]
        before = await finished()
        await asyncio.gather(*(ask(history + list(range(n * 500, n * 500 + 400))) for n in range(8, 16)))
        after = await finished()
        assert all(after[name] > before[name] for name in after)
