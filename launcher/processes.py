"""The processes of a cluster: restarted when they die, ended in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from launcher.child import Child
from launcher.instance import WORKER_KILL_AFTER_S


class Processes:
    """Keeps those that were added alive while `keep_alive` runs."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._group: asyncio.TaskGroup | None = None
        self._keepers: dict[Child, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children))

    def add(self, child: Child) -> None:
        """It belongs to the cluster, and is ended with it."""
        self._children.append(child)

    def keep(self, child: Child) -> None:
        """Restart it from now on when it dies; one that came before `keep_alive` is found by that."""
        if self._group is not None:
            self._keepers[child] = self._group.create_task(child.keep_alive())

    def let_go(self, child: Child) -> None:
        """Restart it no more: it is about to be ended."""
        if (task := self._keepers.pop(child, None)) is not None:
            task.cancel()

    def remove(self, child: Child) -> None:
        """It has ended."""
        self._children.remove(child)

    async def keep_alive(self) -> None:
        """Until cancelled; a group with ClusterError if one cannot be kept alive."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for child in self._children:
                self.keep(child)
            await asyncio.Event().wait()

    async def stop(self) -> None:
        """End all; returns when they are gone."""
        # Router and controllers drain, for which they need the workers; those have nothing to wait for then.
        await asyncio.gather(*(child.stop() for child in self if child.relies_on_others))
        await asyncio.gather(*(child.stop(WORKER_KILL_AFTER_S) for child in self))
