"""TLS connections that are closed once the client has taken what was written, however slowly it reads.

asyncio has one timeout for that and for TLS's goodbye. It must be short, for idle clients do not answer the
goodbye; and it cut every answer that a slow reader had not taken within it.
"""

from __future__ import annotations

import asyncio
from typing import Any

_LOOK_S = 0.05
_PIECE_BYTES = 64 * 1024


class UnhurriedTransport:
    """A transport of TLS, and in front of its `close` the wait for its client."""

    def __init__(self, transport: asyncio.Transport, raw: asyncio.WriteTransport, stalled_s: float) -> None:
        """raw: the one below it. stalled_s: a client that takes nothing for so long is hung up on."""
        self._transport = transport
        self._raw = raw
        self._stalled_s = stalled_s
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._left = 0
        self._since = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Part of asyncio.Transport. Cut, for of one large piece that TLS has passed down nobody is told who
        has to wait: the layer below says it to TLS, and TLS when it is given more."""
        whole = memoryview(data)
        for begin in range(0, len(whole), _PIECE_BYTES):
            self._transport.write(whole[begin : begin + _PIECE_BYTES])

    def is_closing(self) -> bool:
        """Part of asyncio.Transport."""
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        """Part of asyncio.Transport."""
        if not self._closing:
            self._closing = True
            self._left, self._since = self.get_write_buffer_size(), self._loop.time()
            self._look()

    def get_write_buffer_size(self) -> int:
        """Part of asyncio.Transport; here of both layers."""
        return self._raw.get_write_buffer_size() + self._transport.get_write_buffer_size()

    def _look(self) -> None:
        left, now = self.get_write_buffer_size(), self._loop.time()
        if not left or self._transport.is_closing():
            self._transport.close()
            return
        if left < self._left:
            self._left, self._since = left, now
        elif now - self._since > self._stalled_s:
            self._transport.abort()
            return
        self._loop.call_later(_LOOK_S, self._look)


def unhurried(transport: asyncio.Transport, stalled_s: float) -> asyncio.Transport | UnhurriedTransport:
    """The transport; if it speaks TLS, one whose `close` cuts nothing."""
    # asyncio does not show what lies below; where it has other names for that, all is as it was.
    raw = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return transport if raw is None else UnhurriedTransport(transport, raw, stalled_s)
