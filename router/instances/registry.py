"""The instances that this router knows, and their leases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import structlog

from router.instances.link import InstanceAddress, InstanceLink, LinkedModel
from router.instances.served_model import InstanceDescription
from tidepipe_common.errors import (
    IncompatibleError,
    NotFoundError,
    OverloadedError,
    TidePipeError,
    UnavailableError,
)
from tidepipe_common.exception_groups import leaves
from tidepipe_common.notifier import Notifier

MAX_INSTANCES = 1024
SWEEP_S = 0.2
PROBE_TIMEOUT_S = 3.0
PROBE_PAUSE_S = 1.0
REMOVED_PATIENCE_S = 2.0
"""An instance that said goodbye and cannot be reached this long is gone with all it had."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Entry:
    link: InstanceLink
    task: asyncio.Task[None]
    expires_at: float
    removed: bool = False


class InstanceRegistry:
    """Instances come with a lease and keep it by renewing it.

    One whose lease has ended gets nothing new; when it cannot be reached either, its sequences go elsewhere.
    """

    def __init__(
        self,
        router_id: str,
        admit: Callable[[InstanceDescription], Awaitable[LinkedModel]],
        changed: Notifier,
        clock: Callable[[], float],
    ) -> None:
        """admit: the model that an instance serves; IncompatibleError if it fits none.

        changed: beats when an instance comes or goes.
        """
        self._router_id = router_id
        self._admit = admit
        self._changed = changed
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._joining: set[str] = set()
        self._group: asyncio.TaskGroup | None = None

    def __iter__(self) -> Iterator[InstanceLink]:
        return iter([entry.link for entry in self._entries.values()])

    def __len__(self) -> int:
        return len(self._entries)

    def link(self, instance_id: str) -> InstanceLink:
        """The link of an instance; NotFoundError lists those there are."""
        if (entry := self._entries.get(instance_id)) is not None:
            return entry.link
        names = ", ".join(self._entries) or "none"
        raise NotFoundError(f"no instance {instance_id}; there are: {names}")

    @property
    def connected(self) -> list[InstanceLink]:
        """Those that can be reached."""
        return [link for link in self if link.connected]

    async def run(self) -> None:
        """Keep links and leases until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            while True:
                await asyncio.sleep(SWEEP_S)
                self._sweep()

    async def register(self, announced: InstanceAddress, lease_s: float) -> None:
        """An instance announces itself, or renews its lease. Raises if it does not fit or does not answer."""
        name = announced.instance_id
        if name in self._joining:
            raise UnavailableError(f"instance {name} is being registered; renew it in a moment")
        entry = self._entries.get(name)
        if entry is not None and self._is_same(entry, announced):
            entry.expires_at = self._clock() + lease_s
            entry.removed = entry.link.draining = False
            entry.link.lease_valid = True
            self._changed.notify_all()
            return
        if entry is None and len(self._entries) + len(self._joining) >= MAX_INSTANCES:
            raise OverloadedError(f"this router has {MAX_INSTANCES} instances already", 10_000)
        self._joining.add(name)
        try:
            if entry is not None:
                await self._drop(entry, "the instance was started anew")
            await self._join(announced, lease_s)
        finally:
            self._joining.discard(name)

    def remove(self, instance_id: str) -> int:
        """Give an instance nothing new; returns how many sequences it still has to finish."""
        entry = self._entries.get(instance_id)
        if entry is None:
            return 0
        log.info("instance leaves", instance=instance_id, unfinished=len(entry.link.placements))
        entry.removed = entry.link.draining = True
        # It waits for its sequences, but not for ever.
        dispatcher = entry.link.model.dispatcher
        dispatcher.directory.silent(entry.link)
        dispatcher.evacuate(entry.link, "it is being stopped")
        self._changed.notify_all()
        return len(entry.link.placements)

    async def close(self, grace_s: float) -> None:
        """Tell the instances which sequences were withdrawn; for that they have `grace_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                for link in self.connected:
                    await link.cancellations_sent()

    def _is_same(self, entry: _Entry, announced: InstanceAddress) -> bool:
        known = entry.link.announced
        if known.address == announced.address:
            # An empty incarnation is one that the announcer leaves to Describe.
            return announced.incarnation in ("", known.incarnation)
        if entry.link.connected and entry.link.lease_valid:
            raise IncompatibleError(
                f"the name {announced.instance_id} is taken by the instance at {known.address}; "
                "give every instance its own"
            )
        return False

    async def _join(self, announced: InstanceAddress, lease_s: float) -> None:
        if self._group is None:
            raise UnavailableError("this router is not running")
        link = InstanceLink(announced, self._router_id, self._clock, admit=self._admit, changed=self._changed)
        try:
            await link.describe()
        except BaseException:
            await link.close("it did not fit")
            raise
        task = self._group.create_task(self._work(link))
        self._entries[announced.instance_id] = _Entry(link, task, self._clock() + lease_s)
        link.model.dispatcher.directory.attach(link)
        log.info(
            "instance registered",
            instance=announced.instance_id,
            address=announced.address,
            model=link.model.name,
        )

    async def _work(self, link: InstanceLink) -> None:
        """Run a link. Whatever ends it, its sequences go elsewhere and the router goes on."""
        reason = "the link was closed"
        try:
            await link.run()
        except* TidePipeError as group:
            reason = str(leaves(group)[0])
            log.error("instance dropped", instance=link.instance_id, reason=reason)
        except* Exception:
            reason = "the link broke down"
            log.exception("link broke down", instance=link.instance_id)
        finally:
            self._forget(link)
            await link.close(reason)

    async def _drop(self, entry: _Entry, reason: str) -> None:
        log.info("instance dropped", instance=entry.link.instance_id, reason=reason)
        entry.task.cancel()
        await asyncio.wait([entry.task])

    def _forget(self, link: InstanceLink) -> None:
        link.model.dispatcher.directory.detach(link)
        entry = self._entries.get(link.instance_id)
        if entry is not None and entry.link is link:
            del self._entries[link.instance_id]

    def _sweep(self) -> None:
        now = self._clock()
        for entry in list(self._entries.values()):
            link = entry.link
            if link.lease_valid and now > entry.expires_at:
                log.warning("lease ended", instance=link.instance_id, connected=link.connected)
                link.lease_valid = False
                if link.connected and self._group is not None:
                    self._group.create_task(self._probe(entry))
            if self._is_gone(entry, now):
                entry.task.cancel()

    async def _probe(self, entry: _Entry) -> None:
        """Find out whether an instance that looks connected is: a cut network leaves connections standing."""
        link = entry.link
        while not link.lease_valid and link.connected and not entry.task.done():
            try:
                await link.client.status(PROBE_TIMEOUT_S)
            except UnavailableError:
                entry.task.cancel()
            except TidePipeError as error:
                log.warning("status failed", instance=link.instance_id, reason=str(error))
            await asyncio.sleep(PROBE_PAUSE_S)

    @staticmethod
    def _is_gone(entry: _Entry, now: float) -> bool:
        link = entry.link
        if link.connected:
            # It may finish what it has, however late its renewals are.
            return not len(link.placements) and (entry.removed or not link.lease_valid)
        if not link.lease_valid:
            return True
        return entry.removed and now - link.disconnected_at > REMOVED_PATIENCE_S
