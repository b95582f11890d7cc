"""A call whose channel is closed meanwhile fails; one whose caller is cancelled is cancelled."""

from __future__ import annotations

import asyncio
import gc
import threading

import grpc
import pytest

from tidepipe_common.errors import UnavailableError
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import translated

HANDLED = "/test/Wait"


async def call(channel: grpc.aio.Channel) -> None:
    with translated():
        await channel.unary_unary(HANDLED)(b"", timeout=60)


@pytest.mark.parametrize("closed", [True, False])
async def test_closing_is_no_cancellation(closed: bool) -> None:
    arrived, server = asyncio.Event(), grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")

    async def wait(request: bytes, context: object) -> bytes:
        arrived.set()
        await asyncio.Event().wait()
        return b""

    handler = grpc.unary_unary_rpc_method_handler(wait)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Wait": handler}),))
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    calling = asyncio.create_task(call(channel))
    async with asyncio.timeout(60):
        await arrived.wait()
        if closed:
            await channel.close()
        else:
            calling.cancel()
        with pytest.raises(UnavailableError if closed else asyncio.CancelledError):
            await calling
    await channel.close()
    await server.stop(None)


async def test_a_call_on_a_channel_that_is_closed_already_fails_likewise() -> None:
    channel = open_channel("127.0.0.1:1")
    await channel.close()
    with pytest.raises(UnavailableError, match="closed"):
        await call(channel)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine")
async def test_a_server_that_a_failed_test_left_is_collected() -> None:
    """In another thread, after its event loop: see `keep_grpc`. Without that it hangs."""

    async def left() -> list[object]:
        server = grpc.aio.server()
        server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return [server]

    def run_and_drop() -> None:
        circle = asyncio.run(left())
        circle.append(circle)

    await asyncio.to_thread(run_and_drop)
    collecting = threading.Thread(target=gc.collect, daemon=True)
    collecting.start()
    await asyncio.to_thread(collecting.join, 20)
    assert not collecting.is_alive()
