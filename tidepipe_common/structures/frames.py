"""Messages on a socket: four bytes of length, then so many bytes."""

from __future__ import annotations

import socket

_LENGTH_BYTES = 4


def send_frame(channel: socket.socket, data: bytes) -> None:
    """Blocks until all is sent."""
    channel.sendall(len(data).to_bytes(_LENGTH_BYTES, "big") + data)


def receive_frame(channel: socket.socket) -> bytes:
    """The next message; blocks. EOFError if the other end is closed before its end."""
    return _receive(channel, int.from_bytes(_receive(channel, _LENGTH_BYTES), "big"))


def _receive(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
