"""Requests that no instance could take yet: a bounded queue with deadlines, fair between tenants."""

from __future__ import annotations

import heapq
from bisect import insort
from collections import Counter

from router.scheduler.request import RouteRequest

LARGEST_SHARE = 0.5
"""Of the queue that one tenant may fill."""
SETTLED = 256
"""Tenants whose shares are remembered before those that owe nothing are forgotten."""

Entry = tuple[tuple[bool, float], int, str]


class PendingRoom:
    """How many may wait, in all queues of a router together, and of one tenant at most."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting = 0
        self._of: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        """No room for one more."""
        return self._waiting >= self.limit

    def full_for(self, tenant: str) -> bool:
        """No room for one more of this one's; who has no name may fill it."""
        mine = self._of[tenant] if tenant else 0
        return self.full or mine >= max(1.0, self.limit * LARGEST_SHARE)

    def enter(self, tenant: str) -> None:
        """One more waits."""
        self._waiting += 1
        self._of[tenant] += 1

    def leave(self, tenant: str) -> None:
        """One fewer."""
        self._waiting -= 1
        self._of[tenant] -= 1
        if not self._of[tenant]:
            del self._of[tenant]


class PendingQueue:
    """Whose TTFT target ends first goes first, of one tenant and priority (`RouteRequest.turn`); with one SLO
    class that is first come, first served. Of several tenants that one goes whose requests had the least work
    done so far: start-time fair queueing. Who had nothing to do meanwhile has not saved it up. What nobody
    waits for comes behind all else of everybody.
    """

    def __init__(self, room: PendingRoom | int) -> None:
        """room: shared with other queues, or one of its own for so many."""
        self._room = PendingRoom(room) if isinstance(room, int) else room
        self._requests: dict[str, RouteRequest] = {}
        self._lines: dict[str, list[Entry]] = {}
        self._expiry: list[tuple[float, str]] = []
        self._count = 0
        self._done: dict[str, float] = {}
        self._now = 0.0  # work that a tenant had done who was never behind

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def full(self) -> bool:
        """No room for one more."""
        return self._room.full

    def full_for(self, tenant: str) -> bool:
        """No room for one more of this one's."""
        return self._room.full_for(tenant)

    def ahead(self, count: int) -> list[RouteRequest]:
        """The first ones in line, `count` of them at most."""
        if len(self._lines) == 1:
            (line,) = self._lines.values()
            return [self._requests[entry[2]] for entry in line[:count]]
        turns = [
            (_background(line[0]), self._share(tenant), line[0], tenant)
            for tenant, line in self._lines.items()
        ]
        heapq.heapify(turns)
        taken: Counter[str] = Counter()
        found: list[RouteRequest] = []
        while turns and len(found) < count:
            _, share, entry, tenant = turns[0]
            found.append(self._requests[entry[2]])
            taken[tenant] += 1
            line = self._lines[tenant]
            if taken[tenant] < len(line):
                following = line[taken[tenant]]
                turn = (_background(following), share + found[-1].cost, following, tenant)
                heapq.heapreplace(turns, turn)
            else:
                heapq.heappop(turns)
        return found

    def add(self, request: RouteRequest) -> None:
        """OverflowError if it is full; ask first."""
        if self.full:
            raise OverflowError(f"{self._room.limit} requests are pending already")
        self.discard(request.request_id)
        self._count += 1
        self._room.enter(request.tenant)
        self._requests[request.request_id] = request
        line = self._lines.setdefault(request.tenant, [])
        if not line:
            self._done[request.tenant] = self._share(request.tenant)
        insort(line, (request.turn, self._count, request.request_id))
        if request.expires is not None:
            heapq.heappush(self._expiry, (request.expires, request.request_id))

    def served(self, request: RouteRequest) -> None:
        """It got an instance: its tenant had so much work done."""
        share = self._share(request.tenant)
        self._now = max(self._now, share)
        self._done[request.tenant] = share + request.cost
        if len(self._done) > SETTLED + 2 * len(self._lines):
            self._done = {
                tenant: done
                for tenant, done in self._done.items()
                if done > self._now or tenant in self._lines
            }

    def discard(self, request_id: str) -> bool:
        """Take one out, wherever it stands; was it there?"""
        request = self._requests.pop(request_id, None)
        if request is None:
            return False
        self._room.leave(request.tenant)
        line = [entry for entry in self._lines[request.tenant] if entry[2] != request_id]
        if line:
            self._lines[request.tenant] = line
        else:
            del self._lines[request.tenant]
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
        """How long the first in a line has been here, seconds; 0 if nobody is."""
        firsts = (self._requests[line[0][2]].arrived for line in self._lines.values())
        return now - min(firsts, default=now)

    def _share(self, tenant: str) -> float:
        """Work that it had done; never less than who is served now began with."""
        done = self._done.get(tenant, 0.0)
        return done if self._lines.get(tenant) else max(done, self._now)


def _background(entry: Entry) -> bool:
    return entry[0][0]
