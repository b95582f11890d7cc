"""What it takes to fetch KV blocks from another instance: a rate that is learned from what fetches took."""

from __future__ import annotations

LEAST_BYTES = 64 << 10
"""Of a fetch that says something of the rate."""
MEMORY = 0.3
"""Weight of the newest fetch."""


def quicker_fetched(fetch_s: float, compute_s: float, others: int) -> bool:
    """Whether KV blocks should be fetched instead of being computed where so many others decode: a fetch is
    waited for by one, a prompt's steps by all."""
    return fetch_s < (1 + others) * compute_s


class TransferCost:
    """Of one instance's way in: fetches follow each other, at one rate.

    under_way: bytes of fetches that have begun.
    """

    def __init__(self, bytes_per_s: float, latency_s: float = 0.005) -> None:
        """bytes_per_s: before anything was measured. latency_s: of each fetch, whatever its size."""
        self.bytes_per_s = bytes_per_s
        self.under_way = 0
        self._latency_s = latency_s
        self._measured = False

    def seconds(self, nbytes: float, ahead: float = 0.0) -> float:
        """Until so many bytes are here. ahead: of fetches that are under way."""
        return self._latency_s + (ahead + nbytes) / self.bytes_per_s

    def begin(self, nbytes: int) -> int:
        """A fetch of so many bytes begins: how many are under way before it."""
        ahead, self.under_way = self.under_way, self.under_way + nbytes
        return ahead

    def expect(self, bytes_per_s: float) -> None:
        """It is said to be that much; what was measured is believed rather."""
        if not self._measured:
            self.bytes_per_s = bytes_per_s

    def observe(self, nbytes: float, ahead: float, seconds: float) -> None:
        """A fetch took so long, with so many bytes ahead of it when it began."""
        if nbytes < LEAST_BYTES or seconds <= 0.0:
            return
        self._measured = True
        rate = (ahead + nbytes) / max(seconds - self._latency_s, 0.1 * seconds)
        self.bytes_per_s += MEMORY * (rate - self.bytes_per_s)
