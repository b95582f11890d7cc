"""The instances of a local cluster, which come and go: an InstanceProvisioner for this machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import psutil

from launcher.child import Child, ChildSpec
from launcher.config import ClusterConfig
from launcher.instance import LocalInstance
from launcher.processes import Processes
from launcher.provision.provisioner import ProvisionedInstance, Room
from launcher.room import machine_room
from launcher.upstream_instance import UpstreamInstance
from tidepipe_common.errors import NotFoundError, OverloadedError

MAX_INSTANCES = 64


class LocalInstances:
    """Starts and ends them; see InstanceProvisioner."""

    def __init__(
        self,
        config: ClusterConfig,
        processes: Processes,
        make_child: Callable[[ChildSpec, str], Child],
        *,
        router: str,
        predictor: str,
    ) -> None:
        """make_child: a child among the processes, listening on an address. router, predictor: HOST:PORT.

        provisioner: HOST:PORT at which a router that is not ours reaches us; set before anything is started.
        """
        self.provisioner = ""
        self._config = config
        self._processes = processes
        self._make_child = make_child
        self._router = router
        self._predictor = predictor
        self._numbers = itertools.count()
        self._members: dict[str, LocalInstance | UpstreamInstance] = {}
        self._starting = 0

    async def start_instance(self) -> ProvisionedInstance:
        """Part of InstanceProvisioner."""
        if (there := len(self._members) + self._starting) >= MAX_INSTANCES:
            raise OverloadedError(f"this cluster has {there} instances, as many as it may", 60_000)
        instance = self._make()
        self._starting += 1
        try:
            await instance.start(self._router, self._predictor)
        except BaseException:
            await self._end(instance)
            raise
        finally:
            self._starting -= 1
        self._members[instance.name] = instance
        for child in instance.children:
            self._processes.keep(child)
        return _provisioned(instance)

    def _make(self) -> LocalInstance | UpstreamInstance:
        urls = self._config.upstreams
        if not urls:
            return LocalInstance(self._config, next(self._numbers), self._make_child, self.provisioner)
        number = next(self._numbers)
        if number >= len(urls):
            raise OverloadedError(
                "each upstream server is one instance; add another by `python -m controller.upstream`", 60_000
            )
        return UpstreamInstance(self._config, number, self._make_child)

    async def stop_instance(self, instance_id: str) -> None:
        """Part of InstanceProvisioner."""
        instance = self._members.pop(instance_id, None)
        if instance is None:
            names = ", ".join(self._members) or "none"
            raise NotFoundError(f"this cluster has no instance {instance_id}; it has: {names}")
        for child in instance.children:
            self._processes.let_go(child)
        await self._end(instance)

    def instances(self) -> list[ProvisionedInstance]:
        """Part of InstanceProvisioner."""
        return [_provisioned(instance) for instance in self._members.values()]

    def room(self) -> Room | None:
        """Part of InstanceProvisioner."""
        if self._config.upstreams:
            return Room(0, "each upstream server is one instance")
        sizes = [size for instance in list(self._members.values()) if (size := _resident_bytes(instance))]
        there = len(self._members) + self._starting
        return machine_room(self._config, there, self._starting, max(sizes, default=0), MAX_INSTANCES)

    async def _end(self, instance: LocalInstance | UpstreamInstance) -> None:
        await instance.stop()
        for child in instance.children:
            self._processes.remove(child)


def _resident_bytes(instance: LocalInstance | UpstreamInstance) -> int:
    """Memory of all its processes; 0 if one of them is gone just now."""
    try:
        return sum(psutil.Process(child.pid).memory_info().rss for child in instance.children)
    except psutil.Error:
        return 0


def _provisioned(instance: LocalInstance | UpstreamInstance) -> ProvisionedInstance:
    assert instance.controller is not None, "it has been started"
    pids = ", ".join(str(child.pid) for child in instance.children)
    return ProvisionedInstance(instance.name, instance.controller.address, f"this machine, pids {pids}")
