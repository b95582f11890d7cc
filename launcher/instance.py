"""One instance of a local cluster: its stage workers, if it has any, and its controller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from launcher.child import Child, ChildSpec
from launcher.config import ClusterConfig
from launcher.plan import controller_spec, instance_name, worker_spec
from launcher.ports import join, own_loopback
from tidepipe_common.errors import TidePipeError
from tidepipe_common.exception_groups import leaves

WORKER_KILL_AFTER_S = 3.0


class LocalInstance:
    """Starts and ends the processes of one pipeline, in order."""

    def __init__(
        self,
        config: ClusterConfig,
        number: int,
        make_child: Callable[[ChildSpec, str], Child],
        provisioner: str = "",
    ) -> None:
        """make_child: a child for a specification and an address to listen on. provisioner: see plan."""
        self.name = instance_name(config, number)
        self._provisioner = provisioner
        self.controller: Child | None = None
        self._config = config
        self._number = number
        self._make_child = make_child
        # vLLM makes its own.
        workers = config.stages if config.engine == "native" else 0
        host = _host(config, number)
        self.workers = [
            make_child(worker_spec(config, number, stage), join(host, 0)) for stage in range(workers)
        ]

    @property
    def children(self) -> list[Child]:
        """All of its processes."""
        return [*self.workers, *([self.controller] if self.controller else [])]

    async def start(self, router: str, predictor: str) -> str:
        """The controller's address once it serves; ClusterError if a process does not come up."""
        failures: list[TidePipeError] = []
        try:
            async with asyncio.TaskGroup() as group:
                for worker in self.workers:
                    group.create_task(worker.start())
        except* TidePipeError as errors:
            failures = leaves(errors)
        if failures:
            raise failures[0]
        addresses = [worker.address for worker in self.workers]
        spec = controller_spec(
            self._config,
            self._number,
            stages=addresses,
            router=router,
            predictor=predictor,
            provisioner=self._provisioner,
        )
        self.controller = self._make_child(spec, join(self._config.host, 0))
        return await self.controller.start()

    async def stop(self) -> None:
        """The controller drains, for which it needs the workers; those have nothing to wait for then."""
        if self.controller is not None:
            await self.controller.stop()
        await asyncio.gather(*(worker.stop(WORKER_KILL_AFTER_S) for worker in self.workers))


def _host(config: ClusterConfig, number: int) -> str:
    """Where an instance's workers listen: with an emulated network each is a node, as hosts tell them apart.

    Certificates are of the usual host alone.
    """
    emulated = config.network_gbit is not None and config.host == "127.0.0.1" and config.tls is None
    return (own_loopback(number) if emulated else "") or config.host
