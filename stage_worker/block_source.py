"""The client of other instances' stages, of which KV blocks are fetched: a channel to each, within bounds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from tidepipe.v1 import stage_pb2, stage_pb2_grpc
from tidepipe_common.codec.kv_transfer import piece_from_wire, wanted_to_wire
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.types.kv_transfer import KvPiece, KvWanted

MOST_CHANNELS = 256
"""Descriptors are few by default (1,024 for a process), and each channel has one at least."""


@dataclass(slots=True)
class _Source:
    """A channel. streams: that are open over it."""

    channel: grpc.aio.Channel
    streams: int = 0


class BlockSources:
    """Channels are kept: many fetches come from few stages. Of too many the one goes that was left first."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._sources: dict[str, _Source] = {}
        """The one last used is the last."""

    async def stream(self, address: str, wanted: KvWanted, timeout_s: float) -> AsyncGenerator[KvPiece, None]:
        """The blocks, piece by piece. AioRpcError; ValueError: too many stages are fetched from at a time."""
        async with self._channel(address) as channel:
            stub = stage_pb2_grpc.StageServiceStub(channel)
            call = stub.FetchBlocks(wanted_to_wire(wanted), timeout=timeout_s)
            try:
                while isinstance(message := await call.read(), stage_pb2.FetchBlocksResponse):
                    yield piece_from_wire(message)
            finally:
                call.cancel()

    @asynccontextmanager
    async def _channel(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        idle: str | None = None
        source = self._sources.pop(address, None)
        if source is None:
            if len(self._sources) >= MOST_CHANNELS:
                idle = next((name for name, one in self._sources.items() if not one.streams), None)
                if idle is None:
                    raise ValueError(f"blocks come from {MOST_CHANNELS} stages at a time already")
            source = _Source(open_channel(address, max_message_bytes=self._max_message_bytes))
        self._sources[address] = source
        source.streams += 1
        try:
            if idle is not None:
                await self._sources.pop(idle).channel.close()
            yield source.channel
        finally:
            source.streams -= 1

    async def close(self) -> None:
        """Hang up."""
        sources, self._sources = list(self._sources.values()), {}
        for source in sources:
            await source.channel.close()
