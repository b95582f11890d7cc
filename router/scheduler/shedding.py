"""Load shedding: who cannot be served in time is refused as soon as that is known.

Under overload a first-come queue grows until every request in it has waited as long as it may: those that
are served then are late, all of them. So a request waits for a share of its TTFT target at most (the rest
is the instance's), and is refused at once if those ahead of it will take longer than that.

That is for a load that is too high. When nobody else waits, and only a decoding request stands against it,
refusing is a miss for certain and sending it at most as many: then it goes (`last_chance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from router.scheduler.events import Shed
from router.scheduler.request import RouteRequest
from router.scheduler.view import InstanceView

WAIT_SHARE = 0.5
"""Of its TTFT target that a request may wait at the router."""
MEMORY_S = 10.0
"""Seconds of waiting after which most of what was seen is forgotten."""
LEAST_SERVED = 3.0
"""Requests that must have been served before a rate is believed."""


class ServiceRate:
    """Requests per second that get an instance while others wait for one: what the instances bear."""

    def __init__(self) -> None:
        self._served = 0.0
        self._seconds = 0.0
        self._noted: float | None = None

    def served(self, now: float) -> None:
        """A request got an instance."""
        if self._noted is not None:
            self._pass(now)
            self._served += 1.0

    def waiting(self, anyone: bool, now: float) -> None:
        """Does anybody wait from now on? Time in which nobody does says nothing."""
        if self._noted is not None:
            self._pass(now)
        self._noted = now if anyone else None

    @property
    def per_s(self) -> float | None:
        """None while too little was seen."""
        return self._served / self._seconds if self._served >= LEAST_SERVED else None

    def _pass(self, now: float) -> None:
        assert self._noted is not None
        passed, self._noted = now - self._noted, now
        kept = math.exp(-passed / MEMORY_S)
        self._served *= kept
        self._seconds = self._seconds * kept + passed


def hopeless(line: Iterable[RouteRequest], per_s: float, now: float) -> Iterator[Shed]:
    """Those in line that would wait beyond their time. Who may not be refused only counts as ahead."""
    ahead = 0
    for request in line:
        wait = (ahead + 1) / per_s
        if request.sheds and request.expires is not None and now + wait > request.expires:
            yield Shed(request, ahead, wait)
        else:
            ahead += 1


def last_chance(request: RouteRequest, views: Iterable[InstanceView], now: float) -> InstanceView | None:
    """Where it can still have its first token in time, if decoding there waits: who can wait longest."""

    def fits(view: InstanceView) -> bool:
        end = now + view.prompt_done_s(request)
        able = view.ready and not view.facts.lacking(request.needs)
        return able and end <= request.first_token_due and view.kv_of(request) <= view.kv_free

    fitting = [view for view in views if fits(view)]
    return max(fitting, key=lambda view: view.slack.low_latest, default=None)
