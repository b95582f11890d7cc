"""Channels to other services."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidepipe_common.errors import UnavailableError
from tidepipe_common.limits import MESSAGE_BYTES
from tidepipe_common.rpc.token import AsyncTokenChannel, TokenChannel
from tidepipe_common.rpc.transport import channel_credentials
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.security.process import own

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted peer should be found within a second, not after the default back-off of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two channels to one address must not share a connection, so that closing one leaves the other alone.
    ("grpc.use_local_subchannel_pool", 1),
    # Cluster addresses are direct; a proxy from the environment would only get in the way.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(
    address: str,
    *,
    max_message_bytes: int = MESSAGE_BYTES,
    credentials: Credentials | None = None,
) -> grpc.aio.Channel:
    """A channel to HOST:PORT with keepalive, so that a silent peer is noticed within seconds.

    credentials: None for those of this process.
    """
    options = channel_options(max_message_bytes)
    credentials = credentials or own()
    token = credentials.bearer_to(address)
    tls = channel_credentials(credentials)
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, tls, options=options)
    return AsyncTokenChannel(channel, token) if token else channel


def open_sync_channel(address: str, credentials: Credentials | None = None) -> grpc.Channel:
    """As `open_channel`, for threads."""
    options = channel_options()
    credentials = credentials or own()
    token = credentials.bearer_to(address)
    tls = channel_credentials(credentials)
    if tls is None:
        channel = grpc.insecure_channel(address, options=options)
    else:
        channel = grpc.secure_channel(address, tls, options=options)
    return TokenChannel(channel, token) if token else channel


def channel_options(max_message_bytes: int = MESSAGE_BYTES) -> list[tuple[str, int]]:
    """What every channel is made with."""
    return [
        *CHANNEL_OPTIONS,
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    ]


async def is_serving(channel: grpc.aio.Channel, timeout: float = 1.0) -> bool:
    """True if the process behind the channel reports SERVING."""
    stub = health_pb2_grpc.HealthStub(channel)
    with contextlib.suppress(grpc.aio.AioRpcError):
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
    return False


async def wait_serving(address: str, timeout: float) -> None:
    """Return when the process at HOST:PORT reports SERVING; UnavailableError after `timeout` seconds."""
    async with open_channel(address) as channel:
        try:
            async with asyncio.timeout(timeout):
                while not await is_serving(channel):  # noqa: ASYNC110 (it is another process's state)
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise UnavailableError(f"{address} did not become ready within {timeout:g} s") from error
