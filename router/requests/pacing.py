"""How often a stream gets a message when there are very many streams."""

from __future__ import annotations

MESSAGES_PER_S = 6_000
"""Messages that one core sends beside its other work: each costs about 90 microseconds, mostly gRPC's,
whatever it carries (bench/router_capacity.py)."""
LONGEST_GAP_S = 0.25


class Pacing:
    """With very many streams tokens of several steps share a message, or the router would fall behind them.

    The gap between two messages of a stream is streams / MESSAGES_PER_S seconds: with 50 streams 8 ms, below
    any token's time; with 500 it is 83 ms. The first message of a stream never waits.
    """

    def __init__(self) -> None:
        self.streams = 0

    @property
    def gap_s(self) -> float:
        """Time from one message of a stream to its next at least."""
        return min(self.streams / MESSAGES_PER_S, LONGEST_GAP_S)
