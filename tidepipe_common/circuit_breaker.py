"""Circuit breakers (Nygard, Release It!, 2007): what failed is not tried for a while, longer each time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import inf

FIRST_S, MOST_S = 60.0, 960.0
"""For which a breaker is open after the first failure, and at most; twice as long after each that follows."""
MOST_NAMES = 1024


@dataclass(slots=True)
class CircuitBreaker:
    """Of one thing that may fail: open for a while after a failure, then half open, for one trial at a time;
    closed by a success. All times on the caller's clock.

    failures: in a row. until: it is open.
    """

    failures: int = 0
    until: float = -inf
    _failed: float = -inf
    _trial: float = -inf

    def is_open(self, now: float) -> bool:
        """It failed lately."""
        return now < self.until

    def lets(self, now: float) -> bool:
        """May it be tried now?"""
        return now >= max(self.until, self._trial)

    def tried(self, now: float, within_s: float) -> None:
        """It is tried, which is over within that time."""
        if self.failures:
            self._trial = now + within_s

    def failed(self, began: float, now: float) -> float:
        """A trial that began then has failed: how long it is open. Of several side by side one counts."""
        if began >= self._failed:
            self._failed = now
            self.until = now + min(MOST_S, FIRST_S * 2.0 ** min(self.failures, 16))
            self.failures += 1
        return self.until - now

    def worked(self) -> None:
        """A trial was well."""
        self.failures, self.until, self._trial = 0, -inf, -inf


class CircuitBreakers:
    """By name; only of what has failed, and of no more than MOST_NAMES: the longest known are forgotten."""

    def __init__(self) -> None:
        self._breakers: OrderedDict[str, CircuitBreaker] = OrderedDict()

    def of(self, name: str) -> CircuitBreaker | None:
        """None: it did not fail, as far as is known."""
        return self._breakers.get(name)

    def failed(self, name: str, began: float, now: float) -> float:
        """See CircuitBreaker."""
        breaker = self._breakers.setdefault(name, CircuitBreaker())
        self._breakers.move_to_end(name)
        if len(self._breakers) > MOST_NAMES:
            self._breakers.popitem(last=False)
        return breaker.failed(began, now)

    def worked(self, name: str) -> None:
        """See CircuitBreaker."""
        self._breakers.pop(name, None)

    def open(self, now: float) -> tuple[str, ...]:
        """Names of those that are."""
        return tuple(name for name, breaker in self._breakers.items() if breaker.is_open(now))
