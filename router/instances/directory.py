"""Which instances are there, and what the routing core is told of their coming and going."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from router.instances.link import InstanceLink
from router.scheduler.events import (
    Event,
    InstanceDraining,
    InstanceJoined,
    InstanceLeft,
    InstanceReconnected,
    InstanceReported,
    InstanceResumed,
)
from router.scheduler.instance_report import InstanceReport
from router.scheduler.policies.catalog import SPREADING
from router.scheduler.routing_scheduler import RoutingScheduler
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
    ) -> None:
        """handle: tells the core, and does what it says. changed: beats when a link comes or goes."""
        self._scheduler = scheduler
        self._handle = handle
        self._changed = changed
        self._links: dict[str, InstanceLink] = {}
        self._adapters: frozenset[str] = frozenset()
        self.block_size = 0
        """Tokens per KV block of instances that reuse them, by which prompts' beginnings are named; 0: none
        does, as far as is known. Of an instance with blocks of another size nothing can be found."""

    def __getitem__(self, instance_id: str) -> InstanceLink:
        return self._links[instance_id]

    def __iter__(self) -> Iterator[InstanceLink]:
        return iter(list(self._links.values()))

    @property
    def anyone(self) -> bool:
        """Is there an instance at all?"""
        return any(link.open for link in self._links.values())

    @property
    def longest(self) -> int:
        """Context length of the instance that has the longest, tokens; 0 without any."""
        return max((link.context_length for link in self._links.values() if link.open), default=0)

    @property
    def uneven(self) -> bool:
        """Does one of them lack something, be it an adapter that another has, or had?"""
        facts = [link.facts for link in self._links.values() if link.facts is not None]
        self._adapters = self._adapters.union(*(one.fingerprints for one in facts))
        return any(one.lacks or one.fingerprints != self._adapters for one in facts)

    def lacking(self, needs: frozenset[str], *, now: bool) -> frozenset[str]:
        """What of this the instance that can do most of it cannot do. now: of those that take sequences."""
        links = [link for link in self._links.values() if link.open or not now]
        return min((link.lacking(needs) for link in links), key=len, default=frozenset())

    def report_interval_s(self) -> float:
        """Time between two reports at most. Arrivals, ends and phases are reported at once anyway."""
        return LOAD_REPORTS_S if self._scheduler.policy_name in SPREADING else TIMED_REPORTS_S

    def attach(self, link: InstanceLink) -> None:
        """Use an instance from its first report on."""
        self._links[link.instance_id] = link
        self._changed.notify_all()

    def detach(self, link: InstanceLink) -> None:
        """Use an instance no more; its sequences come back when the link is closed."""
        if self._links.get(link.instance_id) is link:
            del self._links[link.instance_id]
            self._handle(InstanceLeft(link.instance_id))
        self._changed.notify_all()

    def reported(self, link: InstanceLink, report: InstanceReport | None) -> None:
        """An instance said how it stands. None: it says nothing any more."""
        name = link.instance_id
        if report is None or self._links.get(name) is not link or not link.open or not report.serving:
            self.silent(link)
            return
        view = self._scheduler.view(name)
        if view is not None and (view.facts.lacks, view.facts.adapters) != link.abilities:
            # It was started anew with others.
            self._handle(InstanceLeft(name))
            view = None
        if view is None:
            self._handle(InstanceJoined(link.routing_facts()))
            link.restart_count()
        elif view.draining:
            self._handle(InstanceResumed(name))
        accepted = max(0, report.accepted - link.count_base)
        holdings = report.holdings if self._same_blocks(report) else None
        self._handle(InstanceReported(name, replace(report, accepted=accepted, holdings=holdings)))
        if (view := self._scheduler.view(name)) and view.prefixes.missed:
            link.tell_all()

    def _same_blocks(self, report: InstanceReport) -> bool:
        """Does it tell of blocks of the size by which beginnings are named? The size stays while an open
        instance has it: with each change all that is under way is named in vain."""
        size = _block_size(report)
        if not size:
            return False
        if size != self.block_size:
            sizes = (_block_size(link.report) for link in self._links.values() if link.open)
            if not self.block_size or self.block_size not in sizes:
                self.block_size = size
        return size == self.block_size

    def silent(self, link: InstanceLink) -> None:
        """Nothing is known of an instance for the time being, or it takes nothing new."""
        view = self._scheduler.view(link.instance_id)
        if view is None or self._links.get(link.instance_id) is not link:
            return
        if link.draining or link.set_aside:
            if not view.draining:
                self._handle(InstanceDraining(link.instance_id))
        elif view.status is not None:
            link.restart_count()
            self._handle(InstanceReconnected(link.instance_id))


def _block_size(report: InstanceReport | None) -> int:
    return report.holdings.block_size if report and report.holdings else 0
