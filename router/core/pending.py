"""Requests that no instance could take yet: a bounded queue with deadlines."""

from __future__ import annotations

import heapq
from bisect import insort

from router.core.request import RouteRequest


class PendingQueue:
    """Whose TTFT target ends first goes first; with one SLO class that is first come, first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._requests: dict[str, RouteRequest] = {}
        self._line: list[tuple[float, int, str]] = []
        self._expiry: list[tuple[float, str]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def full(self) -> bool:
        """No room for one more."""
        return len(self._requests) >= self.limit

    def ahead(self, count: int) -> list[RouteRequest]:
        """The first ones in line, `count` of them at most."""
        return [self._requests[entry[2]] for entry in self._line[:count]]

    def add(self, request: RouteRequest) -> None:
        """OverflowError if it is full; ask first."""
        if self.full:
            raise OverflowError(f"{self.limit} requests are pending already")
        self._count += 1
        self._requests[request.request_id] = request
        insort(self._line, (request.first_token_due, self._count, request.request_id))
        if request.expires is not None:
            heapq.heappush(self._expiry, (request.expires, request.request_id))

    def discard(self, request_id: str) -> bool:
        """Take one out, wherever it stands; was it there?"""
        if self._requests.pop(request_id, None) is None:
            return False
        self._line = [entry for entry in self._line if entry[2] != request_id]
        return True

    def expired(self, now: float) -> list[RouteRequest]:
        """Take out those whose time in the queue is over."""
        gone = []
        while self._expiry and self._expiry[0][0] <= now:
            _, request_id = heapq.heappop(self._expiry)
            request = self._requests.get(request_id)
            if request is not None and request.expires is not None and request.expires <= now:
                self.discard(request_id)
                gone.append(request)
        return gone

    def oldest_wait(self, now: float) -> float:
        """How long the first in line has been here, seconds; 0 if nobody is."""
        first = self.ahead(1)
        return now - first[0].arrived if first else 0.0
