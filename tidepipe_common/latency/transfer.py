"""What it takes to fetch KV blocks from another instance: a fixed time and a rate, both learned from what
fetches took."""

from __future__ import annotations

from collections import deque
from math import exp, inf, log
from statistics import median

from tidepipe_common.types.kv_transfer import LATENCY_S, KvTransfer, KvWay

OBSERVED, MEMORY = 24, 0.85
"""Fetches that count, and the weight of each against the one after it."""
DOUBT_FIXED, DOUBT_RATE = 0.02, 0.04
"""Weights of the fixed time and of the rate that were expected. Of a fixed time less is known: it waits for
steps under way, as long as these are. A rate is what somebody says of a link."""
NEAR = (1.0, 0.7, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1, 0.1, 0.1)
"""Errors (of the logarithm) that count by their squares, in each round; at first nearly all do."""
STRIDE = 2.0
"""Of the logarithm, in one round."""
LEAST_S, MOST_S = 1e-4, 600.0
LEAST_RATE, MOST_RATE = 1e3, 1e13
MOST_BYTES = 1e15
LATE = 2.0
"""Times its fixed time, after which a fetch should have come."""


def quicker_fetched(fetch_s: float, compute_s: float, others: int) -> bool:
    """Whether KV blocks should be fetched instead of being computed where so many others decode: a fetch is
    waited for by one, a prompt's steps by all."""
    return fetch_s < (1 + others) * compute_s


class TransferCost:
    """Of one instance's way in: fetches follow each other, at one rate, and each has a fixed time besides
    (asking, waiting for steps under way), which keeps nobody from the way.

    going_ahead: bytes of fetches whose blocks may still be computed: they are not in the line.
    """

    def __init__(self, bytes_per_s: float, latency_s: float = LATENCY_S) -> None:
        """As they are expected to be, before anything was measured."""
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self.going_ahead = 0
        self._line: list[tuple[int, float]] = []
        """Bytes of each fetch that has begun and not ended, and since when the way could be theirs."""
        self._expected = max(LEAST_S, latency_s), 1.0 / bytes_per_s
        self._seen: deque[tuple[float, float]] = deque(maxlen=OBSERVED)
        self._rests: deque[float] = deque(maxlen=OBSERVED)
        """Fixed times of fetches of little that was left, as long as nothing else says what they are."""

    def way(self, now: float) -> KvWay:
        """As it is now."""
        return KvWay(self.bytes_per_s, self.latency_s, self.under_way(now))

    def under_way(self, now: float) -> float:
        """Bytes of fetches that have begun and are still to come: as many have come as there was time for;
        where the first one in line is late nobody knows, and all count: the way is slower than believed."""
        left = free = 0.0
        for place, (nbytes, since) in enumerate(self._line):
            free = max(free, since) + nbytes / self.bytes_per_s
            if place == 0 and now > free + LATE * self.latency_s:
                return float(sum(size for size, _ in self._line))
            left += min(nbytes, max(0.0, free - now) * self.bytes_per_s)
        return left

    def seconds(self, nbytes: float, ahead: float = 0.0) -> float:
        """Until so many bytes are here. ahead: of fetches that are under way."""
        return KvWay(self.bytes_per_s, self.latency_s).seconds(nbytes, ahead)

    def rest_seconds(self, nbytes: float, ahead: float = 0.0) -> float:
        """As `seconds`, of little that is left of what is here."""
        fixed_s = median(self._rests) if self._rests else self.latency_s
        return KvWay(self.bytes_per_s, fixed_s).seconds(nbytes, ahead)

    def begin(self, nbytes: int, now: float) -> float:
        """A fetch of so many bytes begins: how many are under way before it."""
        ahead = self.under_way(now)
        self._line.append((nbytes, now))
        return ahead

    def ended(self, nbytes: int, now: float) -> None:
        """One of so many bytes has ended. Nothing happens if it was interrupted."""
        place = next((at for at, (size, _) in enumerate(self._line) if size == nbytes), None)
        if place is None:
            return
        del self._line[place]
        if place == 0 and self._line:
            # Its fixed time it had while the one before it came.
            size, began = self._line[0]
            self._line[0] = size, max(began, now - self.latency_s)

    def interrupted(self) -> None:
        """Nothing is under way any more."""
        self._line.clear()
        self.going_ahead = 0

    def expect(self, bytes_per_s: float) -> None:
        """It is said to be that much; what was measured is believed rather."""
        self._expected = self._expected[0], 1.0 / bytes_per_s
        if not self._seen:
            self.bytes_per_s = bytes_per_s

    def observe(self, nbytes: float, ahead: float, seconds: float, beside: float = 0.0) -> None:
        """A fetch took so long, with so many bytes ahead of it when it began. beside: bytes that may have
        been ahead of it, too; what these explain says nothing."""
        if beside and seconds >= self.seconds(nbytes, ahead):
            ahead += beside
            if seconds <= self.seconds(nbytes, ahead):
                return
        if not (0.0 < nbytes + ahead < inf and 0.0 < seconds < inf):
            return
        self._seen.append((min(MOST_BYTES, nbytes + ahead), min(MOST_S, max(LEAST_S, seconds))))
        fixed_s, byte_s = self._expected
        # Little that was left takes hardly more than the fixed time.
        latency_s, byte_s = fitted(self._seen, median(self._rests) if self._rests else fixed_s, byte_s)
        if self._rests:
            self._rests.popleft()  # so that rests are tried again, some time
        self.latency_s = min(MOST_S, max(LEAST_S, latency_s))
        self.bytes_per_s = 1.0 / min(1.0 / LEAST_RATE, max(1.0 / MOST_RATE, byte_s))

    def observe_rest(self, nbytes: float, ahead: float, seconds: float) -> None:
        """As `observe`, of little that was left: it waits for steps under way as any other, and says nothing
        of the rate, for which it would be taken where nothing else is fetched."""
        if 0.0 < nbytes + ahead < inf and 0.0 < seconds < inf:
            self._rests.append(min(MOST_S, max(LEAST_S, seconds - (nbytes + ahead) / self.bytes_per_s)))


class TransferCosts:
    """Of one instance's ways in: from other nodes (`far`), and within its own (`near`), each learned from the
    fetches that came by it."""

    def __init__(self, far: TransferCost, near: TransferCost | None = None) -> None:
        """near: None: expected to be as the other one."""
        self.far = far
        self.near = near or TransferCost(far.bytes_per_s, far.latency_s)

    @classmethod
    def of(cls, said: KvTransfer) -> TransferCosts:
        """As they are said to be."""
        far, near = (TransferCost(way.bytes_per_s or 1.0, way.latency_s) for way in (said.far, said.near))
        return cls(far, near)

    def by(self, near: bool) -> TransferCost:
        """Of one of both."""
        return self.near if near else self.far

    def expect(self, bytes_per_s: float) -> None:
        """All that comes here is said to come at that rate."""
        for one in (self.far, self.near):
            one.expect(bytes_per_s)

    def interrupted(self) -> None:
        """Nothing is under way any more."""
        for one in (self.far, self.near):
            one.interrupted()


def fitted(seen: deque[tuple[float, float]], latency_s: float, byte_s: float) -> tuple[float, float]:
    """Fixed time and seconds per byte of fetches (bytes, seconds), the newest last; both are positive.

    Least absolute errors of the logarithm, by reweighted Gauss-Newton steps over the logarithms of both:
    sizes span decades, and one fetch that was held up says nothing. What the sizes leave open is as expected
    (`latency_s`, `byte_s`): of fetches of one size that take longer, whatever has to change less.
    """
    fixed, each = latency_s, byte_s
    moved0 = moved1 = 0.0
    newest = len(seen) - 1
    points = [(size, spent, MEMORY ** (newest - at)) for at, (size, spent) in enumerate(seen)]
    for near in NEAR:
        # By how much each has left what is expected.
        h00, h01, h11 = DOUBT_FIXED, 0.0, DOUBT_RATE
        g0, g1 = DOUBT_FIXED * moved0, DOUBT_RATE * moved1
        for size, spent, weight in points:
            predicted = fixed + each * size
            part = fixed / predicted
            rest = 1.0 - part
            error = log(predicted / spent)
            counts = weight / max(abs(error), near)
            h00 += counts * part * part
            h01 += counts * part * rest
            h11 += counts * rest * rest
            g0 += counts * error * part
            g1 += counts * error * rest
        det = h00 * h11 - h01 * h01
        up0 = max(-STRIDE, min(STRIDE, (h01 * g1 - h11 * g0) / det))
        up1 = max(-STRIDE, min(STRIDE, (h01 * g0 - h00 * g1) / det))
        fixed, each = fixed * exp(up0), each * exp(up1)
        moved0, moved1 = moved0 + up0, moved1 + up1
    return fixed, each
