"""What comes as a request and is none, over a real connection: the caller is told, and nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tidepipe_common.rpc.server import RpcServer

Message = health_pb2.HealthCheckRequest
NONE = (b"\xff\xff\xff", b"\x0a\x05abc", b"\x0a\x02\xff\xfe", b"{}", b"\xff" * 200_000)
"""No protobuf; one that ends too early; one whose text is no UTF-8; JSON; one that is read elsewhere."""


async def _unary(request: Any, context: object) -> Any:
    return request


async def _stream(request: Any, context: object) -> AsyncIterator[Any]:
    yield request


async def _unary_of_stream(requests: AsyncIterator[Any], context: object) -> Any:
    return [request async for request in requests][-1]


async def _stream_of_stream(requests: AsyncIterator[Any], context: object) -> AsyncIterator[Any]:
    async for request in requests:
        yield request


KINDS = {
    "UnaryUnary": grpc.unary_unary_rpc_method_handler(_unary, Message.FromString, Message.SerializeToString),
    "UnaryStream": grpc.unary_stream_rpc_method_handler(
        _stream, Message.FromString, Message.SerializeToString
    ),
    "StreamUnary": grpc.stream_unary_rpc_method_handler(
        _unary_of_stream, Message.FromString, Message.SerializeToString
    ),
    "StreamStream": grpc.stream_stream_rpc_method_handler(
        _stream_of_stream, Message.FromString, Message.SerializeToString
    ),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_that_are_no_message_are_the_callers_mistake(
    kind: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    server = RpcServer("127.0.0.1:0")
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", KINDS),))
    await server.start([])
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = channel.stream_stream(f"/a.B/{kind}")
            good = Message(service="x").SerializeToString()
            assert [answer async for answer in call(iter([good]), timeout=20)] == [good]
            if kind.startswith("Unary"):
                with pytest.raises(grpc.aio.AioRpcError, match="ended without a message") as nothing:
                    _ = [answer async for answer in call(iter([]), timeout=20)]
                assert nothing.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            for wrong in NONE:
                for sent in ([wrong], [good, wrong])[: 2 if kind.startswith("Stream") else 1]:
                    with pytest.raises(
                        grpc.aio.AioRpcError, match=r"bytes are no grpc\.health|more than 64 bits"
                    ) as bad:
                        _ = [answer async for answer in call(iter(sent), timeout=20)]
                    assert bad.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await server.stop(0)
    assert "Traceback" not in caplog.text + capsys.readouterr().err
