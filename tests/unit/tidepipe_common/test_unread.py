"""Large gRPC messages are counted before they become objects, read beside the loop, and let go of."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import inference_pb2_grpc as pb_grpc
from tidepipe.v1.sampling_pb2 import SamplingParams
from tidepipe_common.aside import INLINE_BYTES, Room
from tidepipe_common.errors import InvalidRequestError, OverloadedError
from tidepipe_common.limits import MAX_CALL_FIELDS
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.rpc.unread import check_fields

REQUEST = pb.GenerateRequest.DESCRIPTOR
SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"]


def _messages(count: int) -> bytes:
    """Empty messages of a chat, two bytes each."""
    body = b"\x0a\x00" * count
    for number in (5, 1):
        size = len(body)
        length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
        body = bytes([number << 3 | 2]) + length + body
    return body


@pytest.mark.parametrize(
    "raw",
    [_messages(MAX_CALL_FIELDS), b"\x0a\x00" * (MAX_CALL_FIELDS + 1), b"\x08\x01" * (MAX_CALL_FIELDS + 1)],
)
def test_more_fields_than_any_request_has_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="may have 65536 fields"):
        check_fields(raw, REQUEST)


@pytest.mark.parametrize("raw", [b"\x0a\x05\x08", b"\x80", b"\x0a\x02\x2a\x05", b"\x0b\x0c", b"\xff" * 11])
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        check_fields(raw, REQUEST)


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=4),
    st.dictionaries(st.integers(0, 2**32 - 1), st.floats(width=32), max_size=4),
    st.lists(st.integers(0, 2**32 - 1), max_size=4),
)
def test_every_message_passes(turns: list[tuple[str, str]], bias: dict[int, float], stops: list[int]) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role=role, content=text) for role, text in turns])
    sampling = SamplingParams(logit_bias=bias, stop_token_ids=stops, seed=2**64 - 1, temperature=0.5)
    request = pb.InferenceRequest(request_id="a", chat=chat, sampling=sampling, ttft_ms=0.5)
    raw = pb.GenerateRequest(request=request, resume=[pb.StreamPosition(index=1)]).SerializeToString()
    check_fields(raw, REQUEST)
    with pytest.raises(InvalidRequestError):
        check_fields(raw, REQUEST, most=3)


class _Servicer(pb_grpc.InferenceServiceServicer):
    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    async def Submit(self, request: Any, context: Any) -> pb.SubmitResponse:  # noqa: N802
        raise InvalidRequestError(f"{len(request.request.text)} characters")


def _alive() -> int:
    return sum(type(one) is pb.SubmitRequest for one in gc.get_objects())


async def test_a_refused_message_is_read_and_let_go_of() -> None:
    server = RpcServer("127.0.0.1:0")
    pb_grpc.add_InferenceServiceServicer_to_server(_Servicer(), server.server)
    address = await server.start([SERVICE])
    request = pb.SubmitRequest(request=pb.InferenceRequest(text="x" * INLINE_BYTES))
    gc.collect()  # what others left in circles would stay as long as the collector is off
    gc.disable()
    before = _alive()
    try:
        async with open_channel(address) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await stub.Submit(request, timeout=30)
                assert refusal.value.details() == f"{INLINE_BYTES} characters"
            while _alive() > before:  # noqa: ASYNC110 (the server ends its calls a moment after it has answered)
                await asyncio.sleep(0.05)
    finally:
        gc.enable()
        await server.stop(0)


def test_large_messages_share_a_room() -> None:
    room = Room(10 * INLINE_BYTES)
    with room.share() as first, room.share() as second, room.share() as small:
        first.grow(4 * INLINE_BYTES)
        first.grow(8 * INLINE_BYTES)
        with pytest.raises(OverloadedError):
            second.grow(3 * INLINE_BYTES)
        small.grow(INLINE_BYTES)
    assert room.used == 0
