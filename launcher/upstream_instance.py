"""One instance of a local cluster that stands for a server of somebody else's making: a single process."""

from __future__ import annotations

from collections.abc import Callable

from launcher.child import Child, ChildSpec
from launcher.config import ClusterConfig
from launcher.plan import instance_name, upstream_spec
from launcher.ports import join


class UpstreamInstance:
    """Starts and ends the process; the server itself is not ours."""

    def __init__(
        self, config: ClusterConfig, number: int, make_child: Callable[[ChildSpec, str], Child]
    ) -> None:
        """number: of the server among those that are named."""
        self.name = instance_name(config, number) if config.router else f"upstream-{number}"
        self.controller: Child | None = None
        self._config = config
        self._number = number
        self._make_child = make_child

    @property
    def children(self) -> list[Child]:
        """All of its processes."""
        return [self.controller] if self.controller else []

    async def start(self, router: str, predictor: str) -> str:
        """The process's address once it serves; ClusterError if it does not come up."""
        spec = upstream_spec(self._config, self._number, router=router)
        self.controller = self._make_child(spec, join(self._config.host, 0))
        return await self.controller.start()

    async def stop(self) -> None:
        """It drains."""
        if self.controller is not None:
            await self.controller.stop()
