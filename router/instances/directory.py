"""Which instances are there, and what the routing core is told of their coming and going."""

from __future__ import annotations

from collections.abc import Callable

from router.instances.link import InstanceLink
from router.instances.report import status_from_wire
from router.scheduler.events import (
    Event,
    InstanceDraining,
    InstanceJoined,
    InstanceLeft,
    InstanceReconnected,
    InstanceReported,
    InstanceResumed,
)
from router.scheduler.policies.catalog import SPREADING
from router.scheduler.routing_scheduler import RoutingScheduler
from tidepipe.v1 import controller_pb2
from tidepipe_common.notifier import Notifier

TIMED_REPORTS_S = 0.1
LOAD_REPORTS_S = 0.5
"""A report costs about two milliseconds of a core, which stages of the same host lack."""


class InstanceDirectory:
    """The links that sequences may be given to. The core knows an instance from its first report on."""

    def __init__(
        self,
        scheduler: RoutingScheduler,
        handle: Callable[[Event], None],
        changed: Notifier,
        clock: Callable[[], float],
    ) -> None:
        """hear: tells the core, and does what it says. changed: beats when a link comes or goes."""
        self._scheduler = scheduler
        self._hear = handle
        self._changed = changed
        self._clock = clock
        self._links: dict[str, InstanceLink] = {}

    def __getitem__(self, instance_id: str) -> InstanceLink:
        return self._links[instance_id]

    @property
    def anyone(self) -> bool:
        """Is there an instance at all?"""
        return any(link.open for link in self._links.values())

    @property
    def longest(self) -> int:
        """Context length of the instance that has the longest, tokens; 0 without any."""
        return max((link.context_length for link in self._links.values() if link.open), default=0)

    @property
    def report_interval_s(self) -> float:
        """Part of ReportHost. Arrivals, ends and phases are reported at once, whatever it is."""
        return LOAD_REPORTS_S if self._scheduler.policy_name in SPREADING else TIMED_REPORTS_S

    def attach(self, link: InstanceLink) -> None:
        """Use an instance from its first report on."""
        self._links[link.instance_id] = link
        self._changed.notify_all()

    def detach(self, link: InstanceLink) -> None:
        """Use an instance no more; its sequences come back when the link is closed."""
        if self._links.get(link.instance_id) is link:
            del self._links[link.instance_id]
            self._hear(InstanceLeft(link.instance_id))
        self._changed.notify_all()

    def reported(self, link: InstanceLink, report: controller_pb2.InstanceReport) -> None:
        """Part of ReportHost."""
        name = link.instance_id
        if self._links.get(name) is not link or not link.open or not report.serving:
            self.silent(link)
            return
        view = self._scheduler.view(name)
        if view is None:
            self._hear(InstanceJoined(link.core_facts(report.costs)))
            link.restart_count()
        elif view.draining:
            self._hear(InstanceResumed(name))
        self._hear(InstanceReported(name, status_from_wire(report, self._clock(), link.count_base)))

    def silent(self, link: InstanceLink) -> None:
        """Part of ReportHost."""
        view = self._scheduler.view(link.instance_id)
        if view is None or self._links.get(link.instance_id) is not link:
            return
        if link.draining or link.set_aside:
            if not view.draining:
                self._hear(InstanceDraining(link.instance_id))
        elif view.status is not None:
            link.restart_count()
            self._hear(InstanceReconnected(link.instance_id))
