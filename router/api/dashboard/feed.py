"""Gathers what the page shows, about twice a second, once for all who watch."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

import structlog

from router.api.dashboard.cluster import ClusterSummary
from router.api.dashboard.event_log import ClusterEvent, EventLog
from router.api.dashboard.instances import WatchedInstance
from router.api.dashboard.recent import KEEP_S
from router.instances.link import InstanceLink
from router.instances.registry import InstanceRegistry
from tidepipe_common.errors import OverloadedError
from tidepipe_common.notifier import Notifier
from tidepipe_common.version import tidepipe_version

TICK_S = 0.5
MAX_WATCHERS = 32
KEPT_NEWS = 8
"""A watcher that is further behind gets everything anew instead of the news one by one."""
RETRY_MS = 5000

log = structlog.get_logger()


class PageFeed:
    """Instances are asked only while somebody watches. All watchers get the same bytes."""

    def __init__(
        self,
        router_id: str,
        model_names: Callable[[], str],
        registry: InstanceRegistry,
        summary: ClusterSummary,
        event_log: EventLog,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """model_names: that clients use. clock: the router's, steady. wall: seconds since 1970."""
        self._router_id = router_id
        self._model_names = model_names
        self._registry = registry
        self._summary = summary
        self._event_log = event_log
        self._clock = clock
        self._wall = wall
        self._base = wall()
        self._started = clock()
        self._watched: dict[str, WatchedInstance] = {}
        self._load: deque[list[float]] = deque(maxlen=int(KEEP_S / TICK_S))
        self._state: dict[str, Any] = {}
        self._news: deque[bytes] = deque(maxlen=KEPT_NEWS)
        self._whole: bytes | None = None
        self._number = 0
        self._told = 0
        self._watchers = 0
        self._closed = False
        self._notifier = Notifier()

    async def run(self) -> None:
        """Gather until cancelled. A page that cannot be fed must not end the router."""
        failing = False
        while True:
            began = self._clock()
            try:
                await self._gather()
                failing = False
            except Exception as error:
                # A defect is told once, with all that is known of it, and not twice a second for ever.
                if not failing:
                    log.exception("the page gets no news until this is over", exc_info=error)
                failing = True
            await asyncio.sleep(max(TICK_S / 5, TICK_S - (self._clock() - began)))

    def close(self) -> None:
        """End all streams; the router stops."""
        self._closed = True
        self._notifier.notify_all()

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """JSON for one watcher, first everything, then news. OverloadedError if too many watch."""
        if self._watchers >= MAX_WATCHERS:
            raise OverloadedError(f"{MAX_WATCHERS} pages watch this router already", RETRY_MS)
        self._watchers += 1
        try:
            heard = -1
            while True:
                changed = self._notifier.next()
                if not self._closed and (heard < 0 or heard == self._number):
                    await changed.wait()
                if self._closed:
                    return
                behind = self._number - heard
                if heard < 0 or behind > len(self._news):
                    heard = self._number
                    yield self._everything()
                else:
                    pieces = list(self._news)[len(self._news) - behind :]
                    heard = self._number
                    for piece in pieces:
                        yield piece
        finally:
            self._watchers -= 1

    async def _gather(self) -> None:
        self._event_log.observe()
        requests = self._summary.requests()
        at = self._ms(self._clock())
        self._load.append([at, requests["queued"], requests["running"], requests["generated_tokens"]])
        if not self._watchers:
            return
        instances = await self._ask([*self._registry])
        self._state = {
            "at": self._ms(self._clock()),
            "router": {
                "id": self._router_id,
                "model": self._model_names(),
                "version": tidepipe_version(),
                "uptime_s": round(self._clock() - self._started, 1),
            },
            "requests": requests,
            "promises": self._summary.promises(),
            "macros": self._summary.macros(),
        }
        told, self._told = self._told, self._event_log.entries[-1].number if self._event_log.entries else 0
        changing = {
            "load": [self._load[-1]],
            "happenings": self._happenings(self._event_log.since(told)),
            "instances": instances,
        }
        self._number += 1
        self._whole = None
        self._news.append(_encoded(self._state | changing))
        self._notifier.notify_all()

    async def _ask(self, links: list[InstanceLink]) -> list[dict[str, Any]]:
        self._watched = {
            link.instance_id: self._watched.get(link.instance_id) or WatchedInstance(self._base)
            for link in links
        }
        now = self._clock()
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._watched[link.instance_id].look(link, now)) for link in links]
        for name, watched in self._watched.items():
            if watched.epoch:
                self._event_log.configured(name, watched.epoch)
        return [task.result() for task in asked]

    def _everything(self) -> bytes:
        if self._whole is None:
            changing = {
                "fresh": True,
                "load": list(self._load),
                "happenings": self._happenings(self._event_log.since(0)),
                "instances": [watched.whole() for watched in self._watched.values()],
            }
            self._whole = _encoded(self._state | changing)
        return self._whole

    def _happenings(self, entries: list[ClusterEvent]) -> list[list[float | str]]:
        return [[self._ms(one.at), one.kind, one.text] for one in entries]

    def _ms(self, at: float) -> float:
        """A time of the router's clock in milliseconds since `base` by the wall."""
        return round(1000 * (self._wall() - self._base - (self._clock() - at)), 1)


def _encoded(state: dict[str, Any]) -> bytes:
    return json.dumps(state, separators=(",", ":"), allow_nan=False).encode()
