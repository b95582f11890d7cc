"""Channels that present a token with every call, as metadata.

gRPC's own way, call credentials, asks a plugin for the token in a thread of its own; closing a channel
while that thread waits for the interpreter hangs for good. Its asynchronous interceptors put a queue and a
task between a caller and each message of a stream. So calls are made with the metadata at once.
"""

from __future__ import annotations

from typing import Any

import grpc

Metadata = tuple[tuple[str, str], ...]


def bearer_metadata(token: str) -> Metadata:
    """What a call says to be let in."""
    return (("authorization", f"Bearer {token}"),)


class _WithMetadata:
    """A callable of a stub, synchronous or not, of any of the four kinds."""

    def __init__(self, call: Any, metadata: Metadata) -> None:
        self._call = call
        self._metadata = metadata

    def __call__(self, *arguments: Any, metadata: Any = None, **options: Any) -> Any:
        return self._call(*arguments, metadata=self._joined(metadata), **options)

    def future(self, *arguments: Any, metadata: Any = None, **options: Any) -> Any:
        """Of synchronous channels."""
        return self._call.future(*arguments, metadata=self._joined(metadata), **options)

    def with_call(self, *arguments: Any, metadata: Any = None, **options: Any) -> Any:
        """Of synchronous channels."""
        return self._call.with_call(*arguments, metadata=self._joined(metadata), **options)

    def _joined(self, metadata: Any) -> Metadata:
        return (*(metadata or ()), *self._metadata)


class _Kinds:
    """The part of a channel that makes calls."""

    _inner: Any
    _metadata: Metadata

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.Channel."""
        return _WithMetadata(self._inner.unary_unary(*arguments, **options), self._metadata)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.Channel."""
        return _WithMetadata(self._inner.unary_stream(*arguments, **options), self._metadata)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.Channel."""
        return _WithMetadata(self._inner.stream_unary(*arguments, **options), self._metadata)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.Channel."""
        return _WithMetadata(self._inner.stream_stream(*arguments, **options), self._metadata)


class AsyncTokenChannel(_Kinds, grpc.aio.Channel):
    """A channel of grpc.aio."""

    def __init__(self, inner: grpc.aio.Channel, token: str) -> None:
        self._inner = inner
        self._metadata = bearer_metadata(token)

    async def __aenter__(self) -> AsyncTokenChannel:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._inner.__aexit__(*error)

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        state: grpc.ChannelConnectivity = self._inner.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        await self._inner.channel_ready()


class TokenChannel(_Kinds, grpc.Channel):
    """A synchronous channel."""

    def __init__(self, inner: grpc.Channel, token: str) -> None:
        self._inner = inner
        self._metadata = bearer_metadata(token)

    def __enter__(self) -> TokenChannel:
        self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        """See grpc.Channel."""
        self._inner.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        """See grpc.Channel."""
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        """See grpc.Channel."""
        self._inner.close()
