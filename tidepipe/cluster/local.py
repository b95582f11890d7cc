"""A local cluster: predictor, stage workers, controllers and router as supervised processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from zlib import crc32

from common.errors import ConfigError, NotFoundError, OverloadedError, TidePipeError, UnavailableError
from common.model_source import resolve_model
from common.security.credentials import Credentials
from tidepipe.client.async_client import AsyncClient
from tidepipe.cluster.child import Child, ChildSpec, ClusterError
from tidepipe.cluster.config import ClusterConfig
from tidepipe.cluster.instance import WORKER_KILL_AFTER_S, LocalInstance
from tidepipe.cluster.measured import with_kept_profile
from tidepipe.cluster.plan import predictor_spec, router_spec
from tidepipe.cluster.ports import choose_port, join
from tidepipe.cluster.scrape_targets import write_targets
from tidepipe.cluster.security import ClusterSecurity
from tidepipe.provision.provisioner import InstanceProvisioner, ProvisionedInstance
from tidepipe.provision.servicer import serve_provisioner

LENGTH_MODEL_FACTS = "model.json"
REGISTERED_S = 60.0
MAX_INSTANCES = 64
REGISTERED_POLL_S = 0.1


class LocalCluster:
    """Use as `async with LocalCluster(config) as cluster`: inside, every service is serving.

    Processes that die are restarted; `wait` ends with ClusterError when one cannot be kept alive.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.children: list[Child] = []
        self.members: dict[str, LocalInstance] = {}
        self._numbers = itertools.count()
        self._predictor_address = ""
        self._machines: InstanceProvisioner = self
        self._keeper_group: asyncio.TaskGroup | None = None
        self._keeper_tasks: dict[Child, asyncio.Task[None]] = {}
        self._serving = contextlib.AsyncExitStack()
        self.grpc_address = ""
        self.http_address = ""
        self._run_dir: Path | None = None
        self._security: ClusterSecurity | None = None
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
        self._security = await asyncio.to_thread(ClusterSecurity.prepare, config, self._run_dir)

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
        self._predictor_address = predictor.address
        self._machines = await self._open_machines()
        provisioner = await self._serving.enter_async_context(
            serve_provisioner(
                self._machines,
                join(config.host, choose_port(config.host, 0)),
                self._security.provisioner if self._security else None,
            )
        )
        spec = router_spec(
            config,
            http=self.http_address,
            predictor=predictor.address,
            provisioner=provisioner,
            run_dir=self._run_dir,
        )
        router = self._child(spec, self.grpc_address)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(predictor.start())
                group.create_task(router.start())
                for _ in range(config.instances):
                    group.create_task(self._machines.start_instance())
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
        await self._serving.aclose()
        if self._keepers is not None:
            self._keepers.cancel()
            await asyncio.gather(self._keepers, return_exceptions=True)
        # Router and controllers drain, for which they need the workers; those have nothing to wait for then.
        await asyncio.gather(*(child.stop() for child in self.children if child.relies_on_others))
        await asyncio.gather(*(child.stop(WORKER_KILL_AFTER_S) for child in self.children))
        if self._security is not None:
            await asyncio.to_thread(self._security.close)
        if self._run_dir is not None and self.config.run_dir is None and not keep_logs:
            await asyncio.to_thread(shutil.rmtree, self._run_dir, ignore_errors=True)

    @property
    def credentials(self) -> Credentials | None:
        """What a client of ours calls with; None before `prepare`."""
        return self._security.client if self._security else None

    @property
    def tls_folder(self) -> Path | None:
        """Folder of the certificates; None if it speaks no TLS."""
        return self._security.folder if self._security else None

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
        environment = self._security.environment(spec.module) if self._security else None
        child = Child(spec, listen, log_file, environment)
        self.children.append(child)
        return child

    def provisioned(self) -> list[ProvisionedInstance]:
        """The instances, wherever they run."""
        return self._machines.instances()

    # -- instances that come and go: an InstanceProvisioner ---------------------------------------------

    async def start_instance(self) -> ProvisionedInstance:
        """Part of InstanceProvisioner."""
        if len(self.members) >= MAX_INSTANCES:
            raise OverloadedError(
                f"this cluster has {len(self.members)} instances, as many as it may", 60_000
            )
        instance = await self._start_instance()
        return self._provisioned(instance)

    async def stop_instance(self, instance_id: str) -> None:
        """Part of InstanceProvisioner."""
        instance = self.members.pop(instance_id, None)
        if instance is None:
            names = ", ".join(self.members) or "none"
            raise NotFoundError(f"this cluster has no instance {instance_id}; it has: {names}")
        for child in instance.children:
            if (task := self._keeper_tasks.pop(child, None)) is not None:
                task.cancel()
        await instance.stop()
        for child in instance.children:
            self.children.remove(child)

    def instances(self) -> list[ProvisionedInstance]:
        """Part of InstanceProvisioner."""
        return [self._provisioned(instance) for instance in self.members.values() if instance.controller]

    @staticmethod
    def _provisioned(instance: LocalInstance) -> ProvisionedInstance:
        assert instance.controller is not None, "it has been started"
        pids = ", ".join(str(child.pid) for child in instance.children)
        return ProvisionedInstance(instance.name, instance.controller.address, f"this machine, pids {pids}")

    async def _open_machines(self) -> InstanceProvisioner:
        """Who starts instances: we ourselves, or Ray."""
        if self.config.provisioner == "local":
            return self
        from tidepipe.provision.ray import RayProvisioner

        security = self._security
        assert security is not None, "it is prepared before anything is started"
        machines = RayProvisioner(
            self.config, self.grpc_address, self._predictor_address, security.environment
        )
        await machines.connect()
        # Before anything that its controllers need is ended.
        self._serving.push_async_callback(machines.close)
        return machines

    async def _start_instance(self) -> LocalInstance:
        instance = LocalInstance(self.config, next(self._numbers), self._child)
        try:
            await instance.start(self.grpc_address, self._predictor_address)
        except BaseException:
            await instance.stop()
            for child in instance.children:
                self.children.remove(child)
            raise
        self.members[instance.name] = instance
        for child in instance.children:
            self._keep(child)
        return instance

    def _keep(self, child: Child) -> None:
        """Restart it from now on when it dies; before the keepers run, they find it among the children."""
        if self._keeper_group is not None:
            self._keeper_tasks[child] = self._keeper_group.create_task(child.keep_alive())

    async def _keep_alive(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._keeper_group = group
                for child in self.children:
                    self._keep(child)
                await asyncio.Event().wait()
        except* ClusterError as failures:
            raise _first(failures) from None

    async def _registered(self) -> None:
        """Wait until the router can use every instance."""
        reason = "the router does not answer"
        async with AsyncClient(self.grpc_address, credentials=self.credentials) as client:
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
