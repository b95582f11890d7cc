"""A local cluster: predictor, stage workers, controllers and router as supervised processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from zlib import crc32

from launcher.child import Child, ChildSpec, ClusterError
from launcher.config import ClusterConfig
from launcher.local_instances import LocalInstances
from launcher.log_files import keep_short
from launcher.plan import predictor_spec, router_spec
from launcher.ports import choose_port, join
from launcher.preflight import check_engine, check_model, check_settings
from launcher.processes import Processes
from launcher.provision.provisioner import InstanceProvisioner, ProvisionedInstance
from launcher.provision.servicer import serve_provisioner
from launcher.scrape_targets import write_targets
from launcher.security import ClusterSecurity
from tidepipe.client.async_client import AsyncClient
from tidepipe.v1 import router_pb2, router_pb2_grpc
from tidepipe_common.errors import (
    ConfigError,
    PermissionDeniedError,
    TidePipeError,
    UnauthenticatedError,
    UnavailableError,
)
from tidepipe_common.exception_groups import leaves
from tidepipe_common.latency.kept_profile import Measured, kept_profile
from tidepipe_common.model_source import resolve_model, resolve_tokenizer
from tidepipe_common.regular_files import read_bytes
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import translated
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.settings.upstream import check_upstream_keys

LENGTH_MODEL_FACTS = "model.json"
REGISTERED_S = 60.0
ROUTER_S = 5.0
REGISTERED_POLL_S = 0.1


class LocalCluster:
    """Use as `async with LocalCluster(config) as cluster`: inside, every service is serving.

    Processes that die are restarted; `wait` ends with ClusterError when one cannot be kept alive.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._processes = Processes()
        self._machines: InstanceProvisioner | None = None
        self._serving = contextlib.AsyncExitStack()
        self.grpc_address = ""
        self.http_address = ""
        self.slow_because: tuple[str, ...] = ()
        self._run_dir: Path | None = None
        self._security: ClusterSecurity | None = None
        self._key_keeper: asyncio.Task[None] | None = None
        self._keepers: asyncio.Task[None] | None = None
        self._rotation: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException as error:
            # Wrong settings say all themselves.
            await self.stop(keep_logs=not isinstance(error, ConfigError))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(keep_logs=isinstance(error, ClusterError))

    async def prepare(self) -> None:
        """Find the model and the ports; ModelError or ConfigError if there is none."""
        config = self.config
        await asyncio.to_thread(check_settings, config)
        if config.upstreams:
            check_upstream_keys(os.environ, len(config.upstreams))
            # their models are theirs: here, the tokenizer is enough
            find = partial(resolve_tokenizer, config.model, allow_download=config.allow_download)
            await asyncio.to_thread(find)
        else:
            path = await asyncio.to_thread(resolve_model, config.model, allow_download=config.allow_download)
            if config.engine == "native":
                await asyncio.to_thread(check_model, config, path)
            else:
                await asyncio.to_thread(check_engine, config)
            self.config = config = with_kept_profile(config, path)
        _state_name(config.predictor)
        if config.router is None:
            # Those that are named first: what is drawn must be another one.
            wanted = sorted(
                {"grpc": config.grpc_port, "http": config.http_port}.items(), key=lambda one: not one[1]
            )
            ports = {name: choose_port(config.host, port) for name, port in wanted}
            self.grpc_address = join(config.host, ports["grpc"])
            self.http_address = join(config.host, ports["http"])
        else:
            # Its folder is looked for by processes that were started elsewhere.
            self.grpc_address = config.router
            self.config = config = with_absolute_model(config)
        self._run_dir = self._make_run_dir()
        self._security = await asyncio.to_thread(ClusterSecurity.prepare, config, self._run_dir)
        if config.router is not None:
            await check_router(config.router, self._security.service)

    async def start(self) -> None:
        """Start all processes and wait until the router has every instance.

        Errors as `prepare`, before anything is started; ClusterError if a process does not come up,
        ConfigError if it cannot with this model and these settings.
        """
        if self._run_dir is None:
            await self.prepare()
        config = self.config
        assert self._run_dir is not None
        if self.log_dir is not None:
            self._rotation = asyncio.create_task(keep_short(self.log_dir), name="rotate logs")
        state = self._run_dir / _state_name(config.predictor)
        predictor = self._child(predictor_spec(config, state), join(config.host, choose_port(config.host, 0)))
        self._machines = machines = await self._open_machines(predictor.address)
        provisioner = await self._serving.enter_async_context(
            serve_provisioner(
                machines,
                join(config.host, choose_port(config.host, 0)),
                self._security.provisioner if self._security else None,
            )
        )
        machines.provisioner = provisioner
        starting = [predictor]
        if config.router is None:
            spec = router_spec(
                config,
                http=self.http_address,
                predictor=predictor.address,
                provisioner=provisioner,
                run_dir=self._run_dir,
            )
            starting.append(self._child(spec, self.grpc_address))
        failures: list[TidePipeError] = []
        try:
            async with asyncio.TaskGroup() as group:
                for child in starting:
                    group.create_task(child.start())
                for _ in range(config.instances_wanted):
                    group.create_task(machines.start_instance())
        except* TidePipeError as errors:
            failures = leaves(errors)
        if failures:
            # One says enough, the others mostly follow from it; rather one that the user can mend.
            raise min(failures, key=lambda failure: not isinstance(failure, ConfigError))
        self._keepers = asyncio.create_task(self._keep_alive(), name="keep the cluster alive")
        if self._security is not None:
            self._key_keeper = asyncio.create_task(self._security.keep_key(), name="keep our key")
        await self._registered()
        if config.metrics and self._run_dir is not None:
            await asyncio.to_thread(write_targets, self._run_dir, self.children)

    async def wait(self) -> None:
        """Return when the cluster is stopped; ClusterError if it cannot be kept alive."""
        if self._keepers is not None:
            await asyncio.shield(self._keepers)

    async def renew(self) -> None:
        """Every process anew, one after the other, without a request that fails. Raises as `start`."""
        for child in self.children:
            await child.renew()
            if child.relies_on_others:
                await self._registered()

    async def stop(self, *, keep_logs: bool = False) -> None:
        """End all processes; returns when they are gone."""
        await self._serving.aclose()
        if self._keepers is not None:
            self._keepers.cancel()
            await asyncio.gather(self._keepers, return_exceptions=True)
        if self._key_keeper is not None:
            self._key_keeper.cancel()
            await asyncio.gather(self._key_keeper, return_exceptions=True)
        await self._processes.stop()
        if self._rotation is not None:
            self._rotation.cancel()
            await asyncio.gather(self._rotation, return_exceptions=True)
        if self._security is not None:
            await asyncio.to_thread(self._security.close)
        if self._run_dir is not None and self.config.run_dir is None and not keep_logs:
            await asyncio.to_thread(shutil.rmtree, self._run_dir, ignore_errors=True)

    @property
    def children(self) -> list[Child]:
        """All processes."""
        return list(self._processes)

    @property
    def credentials(self) -> Credentials | None:
        """What a client of ours calls with; None before `prepare`."""
        return self._security.client if self._security else None

    @property
    def service_credentials(self) -> Credentials | None:
        """What the router calls other services with: for tests of them; None before `prepare`."""
        return self._security.service if self._security else None

    @property
    def tls_folder(self) -> Path | None:
        """Folder of the certificates; None if it speaks no TLS."""
        return self._security.folder if self._security else None

    @property
    def open_to_all(self) -> bool:
        """True if whoever reaches the services' ports may call them; known after `prepare`."""
        return self._security is not None and self._security.open_to_all

    @property
    def log_dir(self) -> Path | None:
        """Folder of the processes' logs; None if they write to our stderr."""
        return None if self.config.verbose else self._run_dir

    def _make_run_dir(self) -> Path:
        if self.config.run_dir is None:
            try:
                return Path(tempfile.mkdtemp(prefix="tidepipe-"))
            except OSError as error:
                raise ConfigError(
                    f"no folder for logs and files ({error.strerror or error}); name one with --run-dir, "
                    "or set TMPDIR"
                ) from error
        folder = Path(self.config.run_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"cannot make the run directory {folder}: {error.strerror or error}") from error
        return folder

    def _child(self, spec: ChildSpec, listen: str) -> Child:
        log_file = self.log_dir / f"{spec.name}.log" if self.log_dir else None
        environment = self._security.environment(spec.module, spec.number) if self._security else None
        child = Child(spec, listen, log_file, environment)
        self._processes.add(child)
        return child

    def provisioned(self) -> list[ProvisionedInstance]:
        """The instances, wherever they run."""
        return self._machines.instances() if self._machines else []

    async def _open_machines(self, predictor: str) -> InstanceProvisioner:
        """Who starts instances: we ourselves, or Ray."""
        if self.config.provisioner == "local":
            return LocalInstances(
                self.config, self._processes, self._child, router=self.grpc_address, predictor=predictor
            )
        from launcher.provision.ray import RayProvisioner

        security = self._security
        assert security is not None, "it is prepared before anything is started"
        machines = RayProvisioner(self.config, self.grpc_address, predictor, security.environment)
        await machines.connect()
        # Before anything that its controllers need is ended.
        self._serving.push_async_callback(machines.close)
        return machines

    async def _keep_alive(self) -> None:
        failures: list[ClusterError] = []
        try:
            await self._processes.keep_alive()
        except* ClusterError as errors:
            failures = leaves(errors)
        if failures:
            raise failures[0]

    async def _registered(self) -> None:
        """Wait until the router can use every instance that is here, however many there are by now."""
        reason = "the router does not answer"
        for _ in range(int(REGISTERED_S / REGISTERED_POLL_S)):
            try:
                missing = await self._missing()
            except UnavailableError as error:
                reason = str(error)
            else:
                if not missing:
                    return
                reason = f"the router does not reach {', '.join(missing)}"
            await asyncio.sleep(REGISTERED_POLL_S)
        raise ClusterError(f"the cluster did not become ready within {REGISTERED_S:g} s: {reason}")

    async def _missing(self) -> list[str]:
        """Our instances that the router does not reach."""
        ours = {one.instance_id for one in self.provisioned()}
        if self.config.router is not None:
            assert self._security is not None, "it is prepared before anything is started"
            return sorted(ours.difference(await instances_at(self.config.router, self._security.service)))
        async with AsyncClient(self.grpc_address, credentials=self.credentials) as client:
            status = await client.status()
        self.slow_because = status.slow_because
        return sorted(ours.difference(entry.instance_id for entry in status.instances if entry.connected))


def _state_name(model: Path | None) -> str:
    """Folder of what a predictor learns, one for each model to begin with; ConfigError if there is none."""
    if model is None:
        return "predictor"
    try:
        return f"predictor-{crc32(read_bytes(model / LENGTH_MODEL_FACTS)):08x}"
    except OSError as error:
        raise ConfigError(
            f"there is no length model in {model} ({error.strerror}); make one: tidepipe predictor train"
        ) from error


def with_absolute_model(config: ClusterConfig) -> ClusterConfig:
    """The same settings, for processes that are started in other folders."""
    path = Path(config.model).expanduser()
    names = ",".join(config.served_names)
    model = str(path.absolute()) if path.exists() else config.model
    return config.model_copy(update={"model": model, "served_model_name": names})


async def check_router(router: str, credentials: Credentials) -> None:
    """ConfigError if there is no router that would take instances with these credentials."""
    try:
        await instances_at(router, credentials)
    except (UnauthenticatedError, PermissionDeniedError) as error:
        raise ConfigError(
            f"the router at {router} does not know us ({error}): give the --tls DIR or the "
            "--cluster-token FILE with which its cluster was started"
        ) from error
    except TidePipeError as error:
        raise ConfigError(
            f"there is no router at {router} ({error}): start one with `tidepipe up --grpc-port`"
        ) from error


async def instances_at(router: str, credentials: Credentials) -> set[str]:
    """Names of the instances that the router at HOST:PORT reaches. TidePipeError if it does not say."""
    async with open_channel(router, credentials=credentials) as channel:
        with translated():
            reply = await router_pb2_grpc.RouterServiceStub(channel).ListInstances(
                router_pb2.ListInstancesRequest(), timeout=ROUTER_S
            )
    return {one.instance_id for one in reply.handles}


def with_kept_profile(config: ClusterConfig, model: Path) -> ClusterConfig:
    """The same settings, with the profile that was measured for them. model: where it was found.

    Only for real workers: emulated ones take what they are told to be.
    """
    if config.profile is not None or config.executor != "torch" or config.engine != "native":
        return config
    stages = config.stages * config.instances
    path = kept_profile(
        Measured(
            str(model.resolve()),
            config.device,
            config.dtype,
            config.quantization,
            config.stage_threads,
            stages,
        )
    )
    return config.model_copy(update={"profile": str(path)}) if path.is_file() else config
