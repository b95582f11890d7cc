"""Bodies in chunks: as many small ones as anybody sends, and not the thousands that make a loop deaf."""

from __future__ import annotations

import h11
import pytest

from tidepipe_common.http.connection import FEW_CHUNKS, MIN_CHUNK_BYTES, StrictConnection

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def _read(body: bytes) -> int:
    """Bytes of the body; raises what the connection says of it."""
    connection = StrictConnection()
    connection.receive_data(HEAD + body)
    size = 0
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        size += len(event.data) if isinstance(event, h11.Data) else 0
    return size


def _chunk(size: int) -> bytes:
    return b"%x\r\n%s\r\n" % (size, b"x" * size)


def test_few_small_chunks_and_many_of_some_size_are_read() -> None:
    assert _read(_chunk(1) * FEW_CHUNKS + b"0\r\n\r\n") == FEW_CHUNKS
    many = 3 * FEW_CHUNKS
    assert _read(_chunk(MIN_CHUNK_BYTES) * many + b"0\r\n\r\n") == many * MIN_CHUNK_BYTES


def test_many_small_chunks_are_refused() -> None:
    with pytest.raises(h11.RemoteProtocolError, match="bytes or more on average"):
        _read(_chunk(1) * 40_000)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", "illegal header line"),
        (b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", "illegal request line"),
        (HEAD + b"0x5\r\n", "illegal chunk header"),
        (HEAD + b"1\r\nabc", "malformed chunk footer"),
    ],
)
def test_what_is_no_http_is_refused_in_words_alone(sent: bytes, said: str) -> None:
    """h11 adds the bytes as Python writes them, a mistyped Authorization line as well."""
    connection = StrictConnection()
    connection.receive_data(sent)
    with pytest.raises(h11.RemoteProtocolError):
        while connection.next_event() is not h11.NEED_DATA:
            pass
    assert connection.refusal == (400, said)
