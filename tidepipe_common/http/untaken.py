"""What clients have not taken of their answers: bounded in bytes, all connections of a door together.

An answer is made before anybody knows whether its client reads: one that asks for large ones and takes none
would have the process keep them all until it is called stalled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Protocol

import structlog

from tidepipe_common.limits import MAX_UNTAKEN_BYTES

log = structlog.get_logger()


class Taker(Protocol):
    """A connection."""

    transport: asyncio.Transport

    @property
    def address(self) -> str:
        """Its client's, without the port."""
        ...


class Untaken:
    """The connections whose clients take nothing for now. Over the limit they are hung up on: of the address
    for which most waits, the one for which most waits."""

    def __init__(self, most: int = MAX_UNTAKEN_BYTES) -> None:
        self._most = most
        self._stalled: dict[Taker, None] = {}
        self._looks = False

    def stalls(self, connection: Taker) -> None:
        """More waits for its client than is sent ahead of it."""
        self._stalled[connection] = None
        if not self._looks:
            self._looks = True
            # Not amid its own write.
            asyncio.get_running_loop().call_soon(self._look)

    def flows(self, connection: Taker) -> None:
        """Its client reads again, or has gone."""
        self._stalled.pop(connection, None)

    def _look(self) -> None:
        self._looks = False
        sizes = {one: one.transport.get_write_buffer_size() for one in self._stalled}
        by_address: Counter[str] = Counter()
        for one, size in sizes.items():
            by_address[one.address] += size
        total = by_address.total()
        while total > self._most:
            address = max(by_address, key=by_address.__getitem__)
            chosen = max((one for one in sizes if one.address == address), key=sizes.__getitem__)
            size = sizes.pop(chosen)
            log.warning("a client takes nothing of its answer, and is hung up on", peer=address, bytes=size)
            by_address[address] -= size
            total -= size
            self.flows(chosen)
            chosen.transport.abort()
