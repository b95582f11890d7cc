"""Channels to other instances' stages are bounded, and who is fetched from now keeps the one it has."""

from __future__ import annotations

from contextlib import aclosing

import grpc
import pytest

from stage_worker import block_source
from stage_worker.block_source import BlockSources
from tidepipe_common.types.kv_transfer import KvWanted

WANTED = KvWanted(1, "aa", 0, 1, 0, 2, "as there")


async def test_of_too_many_channels_the_one_goes_that_was_left_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers; instances come and go, and each new one is asked as the first was."""
    monkeypatch.setattr(block_source, "MOST_CHANNELS", 3)
    sources = BlockSources(1 << 20)

    async def ask(port: int) -> None:
        async with aclosing(sources.stream(f"127.0.0.1:{port}", WANTED, 5.0)) as pieces:
            with pytest.raises(grpc.aio.AioRpcError):
                await anext(pieces)

    try:
        for port in (1, 2, 1, 3, 4, 5):
            await ask(port)
        assert [name[-1] for name in sources._sources] == ["3", "4", "5"]
        async with sources._channel("a"), sources._channel("b"), sources._channel("c"):
            assert list(sources._sources) == ["a", "b", "c"]
            with pytest.raises(ValueError, match="3 stages at a time"):
                await ask(6)
        await ask(6)
    finally:
        await sources.close()
