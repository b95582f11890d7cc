"""A local cluster: predictor, stage workers, controllers and router as supervised processes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from zlib import crc32

from common.errors import ConfigError, TidePipeError, UnavailableError
from common.model_source import resolve_model
from tidepipe.client.async_client import AsyncClient
from tidepipe.cluster.child import Child, ChildSpec, ClusterError
from tidepipe.cluster.config import ClusterConfig
from tidepipe.cluster.measured import with_kept_profile
from tidepipe.cluster.plan import controller_spec, predictor_spec, router_spec, worker_spec
from tidepipe.cluster.ports import choose_port, join
from tidepipe.cluster.scrape_targets import write_targets

LENGTH_MODEL_FACTS = "model.json"
REGISTERED_S = 60.0
WORKER_KILL_AFTER_S = 3.0
REGISTERED_POLL_S = 0.1


class LocalCluster:
    """Use as `async with LocalCluster(config) as cluster`: inside, every service is serving.

    Processes that die are restarted; `wait` ends with ClusterError when one cannot be kept alive.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.children: list[Child] = []
        self.grpc_address = ""
        self.http_address = ""
        self._run_dir: Path | None = None
        self._keepers: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop(keep_logs=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(keep_logs=isinstance(error, ClusterError))

    async def prepare(self) -> None:
        """Find the model and the ports; ModelError or ConfigError if there is none."""
        config = self.config
        path = await asyncio.to_thread(resolve_model, config.model, allow_download=config.allow_download)
        self.config = config = with_kept_profile(config, path)
        _state_name(config.predictor)
        self.grpc_address = join(config.host, choose_port(config.host, config.grpc_port))
        self.http_address = join(config.host, choose_port(config.host, config.http_port))
        self._run_dir = self._make_run_dir()

    async def start(self) -> None:
        """Start all processes and wait until the router has every instance.

        Errors as `prepare`, before anything is started; ClusterError if a process does not come up.
        """
        if self._run_dir is None:
            await self.prepare()
        config = self.config
        assert self._run_dir is not None
        state = self._run_dir / _state_name(config.predictor)
        predictor = self._child(predictor_spec(config, state), join(config.host, choose_port(config.host, 0)))
        spec = router_spec(config, http=self.http_address, predictor=predictor.address, run_dir=self._run_dir)
        router = self._child(spec, self.grpc_address)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(predictor.start())
                group.create_task(router.start())
                for instance in range(config.instances):
                    group.create_task(self._start_instance(instance, predictor.address))
        except* TidePipeError as failures:
            raise _first(failures) from None
        self._keepers = asyncio.create_task(self._keep_alive(), name="keep the cluster alive")
        await self._registered()
        if config.metrics and self._run_dir is not None:
            await asyncio.to_thread(write_targets, self._run_dir, self.children)

    async def wait(self) -> None:
        """Return when the cluster is stopped; ClusterError if it cannot be kept alive."""
        if self._keepers is not None:
            await asyncio.shield(self._keepers)

    async def stop(self, *, keep_logs: bool = False) -> None:
        """End all processes; returns when they are gone."""
        if self._keepers is not None:
            self._keepers.cancel()
            await asyncio.gather(self._keepers, return_exceptions=True)
        # Router and controllers drain, for which they need the workers; those have nothing to wait for then.
        await asyncio.gather(*(child.stop() for child in self.children if child.relies_on_others))
        await asyncio.gather(*(child.stop(WORKER_KILL_AFTER_S) for child in self.children))
        if self._run_dir is not None and self.config.run_dir is None and not keep_logs:
            await asyncio.to_thread(shutil.rmtree, self._run_dir, ignore_errors=True)

    @property
    def log_dir(self) -> Path | None:
        """Folder of the processes' logs; None if they write to our stderr."""
        return None if self.config.verbose else self._run_dir

    def _make_run_dir(self) -> Path:
        if self.config.run_dir is None:
            return Path(tempfile.mkdtemp(prefix="tidepipe-"))
        folder = Path(self.config.run_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the run directory {folder}: {error.strerror or error}") from error
        return folder

    def _child(self, spec: ChildSpec, listen: str) -> Child:
        log_file = self.log_dir / f"{spec.name}.log" if self.log_dir else None
        child = Child(spec, listen, log_file)
        self.children.append(child)
        return child

    async def _start_instance(self, instance: int, predictor: str) -> None:
        config = self.config
        workers = [
            self._child(worker_spec(config, instance, stage), join(config.host, 0))
            for stage in range(config.stages)
        ]
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.start())
        controller = controller_spec(
            config,
            instance,
            stages=[worker.address for worker in workers],
            router=self.grpc_address,
            predictor=predictor,
        )
        await self._child(controller, join(config.host, 0)).start()

    async def _keep_alive(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for child in self.children:
                    group.create_task(child.keep_alive())
        except* ClusterError as failures:
            raise _first(failures) from None

    async def _registered(self) -> None:
        """Wait until the router can use every instance."""
        reason = "the router does not answer"
        async with AsyncClient(self.grpc_address) as client:
            for _ in range(int(REGISTERED_S / REGISTERED_POLL_S)):
                try:
                    status = await client.status()
                except UnavailableError as error:
                    reason = str(error)
                else:
                    usable = sum(entry.connected for entry in status.instances)
                    if usable == self.config.instances:
                        return
                    reason = f"the router reaches {usable} of {self.config.instances} instances"
                await asyncio.sleep(REGISTERED_POLL_S)
        raise ClusterError(f"the cluster did not become ready within {REGISTERED_S:g} s: {reason}")


def _state_name(model: str | None) -> str:
    """Folder of what a predictor learns, one for each model to begin with; ConfigError if there is none."""
    if model is None:
        return "predictor"
    try:
        return f"predictor-{crc32((Path(model) / LENGTH_MODEL_FACTS).read_bytes()):08x}"
    except OSError as error:
        raise ConfigError(
            f"there is no length model in {model} ({error.strerror}); make one: tidepipe predictor train"
        ) from error


def _first(failures: BaseExceptionGroup[TidePipeError]) -> TidePipeError:
    """One failure says enough: the others mostly follow from it."""
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
