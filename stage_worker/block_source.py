"""The client of other instances' stages, of which KV blocks are fetched: one channel to each."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc

from tidepipe.v1 import stage_pb2, stage_pb2_grpc
from tidepipe_common.codec.kv_transfer import piece_from_wire, wanted_to_wire
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.types.kv_transfer import KvPiece, KvWanted

MOST_CHANNELS = 1024


class BlockSources:
    """Channels are kept: many fetches come from few stages."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def stream(self, address: str, wanted: KvWanted, timeout_s: float) -> AsyncGenerator[KvPiece, None]:
        """The blocks, piece by piece. AioRpcError; ValueError: there were too many addresses."""
        stub = stage_pb2_grpc.StageServiceStub(self._channel(address))
        call = stub.FetchBlocks(wanted_to_wire(wanted), timeout=timeout_s)
        try:
            while isinstance(message := await call.read(), stage_pb2.FetchBlocksResponse):
                yield piece_from_wire(message)
        finally:
            call.cancel()

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            if len(self._channels) >= MOST_CHANNELS:
                raise ValueError(f"blocks were fetched from {MOST_CHANNELS} stages already in this epoch")
            channel = open_channel(address, max_message_bytes=self._max_message_bytes)
            self._channels[address] = channel
        return channel

    async def close(self) -> None:
        """Hang up."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()
