"""A channel with a token says it with every call of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from tidepipe_common.rpc.token import AsyncTokenChannel, TokenChannel

SAID = (("other", "mine"),)


async def echo(request: Any, context: Any) -> AsyncIterator[bytes]:
    said = dict(context.invocation_metadata())
    yield f"{said.get('authorization')} {said.get('other')}".encode()


async def echo_one(request: Any, context: Any) -> bytes:
    return await anext(echo(request, context))


async def pieces() -> AsyncIterator[bytes]:
    yield b""


async def test_every_call_says_the_token() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    handlers = {
        "UU": grpc.unary_unary_rpc_method_handler(echo_one),
        "US": grpc.unary_stream_rpc_method_handler(echo),
        "SU": grpc.stream_unary_rpc_method_handler(echo_one),
        "SS": grpc.stream_stream_rpc_method_handler(echo),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", handlers),))
    await server.start()
    expected = b"Bearer secret mine"
    address = f"127.0.0.1:{port}"
    async with AsyncTokenChannel(grpc.aio.insecure_channel(address), "secret") as channel:
        assert await channel.unary_unary("/t/UU")(b"", metadata=SAID, timeout=20) == expected
        assert [one async for one in channel.unary_stream("/t/US")(b"", metadata=SAID)] == [expected]
        assert await channel.stream_unary("/t/SU")(pieces(), metadata=SAID) == expected
        assert [one async for one in channel.stream_stream("/t/SS")(pieces(), metadata=SAID)] == [expected]

    def in_a_thread() -> list[bytes]:
        with TokenChannel(grpc.insecure_channel(address), "secret") as channel:
            call = channel.unary_unary("/t/UU")
            return [
                call(b"", metadata=SAID),
                call.future(b"", metadata=SAID).result(),
                call.with_call(b"", metadata=SAID)[0],
                *channel.unary_stream("/t/US")(b"", metadata=SAID),
                channel.stream_unary("/t/SU")(iter([b""]), metadata=SAID),
                *channel.stream_stream("/t/SS")(iter([b""]), metadata=SAID),
            ]

    assert await asyncio.to_thread(in_a_thread) == [expected] * 6
    await server.stop(None)
