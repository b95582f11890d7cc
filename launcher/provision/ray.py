"""Instances on a Ray cluster: a placement group per instance, an actor per process."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from launcher.child import KILL_AFTER_S, ChildSpec
from launcher.config import ClusterConfig
from launcher.instance import WORKER_KILL_AFTER_S
from launcher.plan import controller_spec, instance_name, worker_spec
from launcher.provision.provisioner import ProvisionedInstance, Room
from tidepipe_common.errors import ConfigError, NotFoundError, OverloadedError, UnavailableError
from tidepipe_common.rpc.lifecycle import PARENT_PID, READY_FD

try:
    import ray
    from ray.exceptions import RayError
    from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
except ImportError as error:
    raise ConfigError("Ray is not installed; install it with `pip install 'tidepipe[ray]'`") from error

PLACE_TIMEOUT_S = 30.0
ACTOR_TIMEOUT_S = 20.0  # an actor's own process, before it does anything
RETRY_AFTER_MS = 30_000
_TRAVEL = ("TIDEPIPE_", "VLLM_")
"""Beginnings of the names of environment variables that processes on other nodes get."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Instance:
    name: str
    group: PlacementGroup
    workers: list[Any] = field(default_factory=list)
    controller: Any = None
    address: str = ""
    place: str = ""


class RayProvisioner:
    """An InstanceProvisioner. Connect first; `close` ends what it started.

    A stage takes one CPU of Ray's (`threads` of them if set), or one GPU; the controller lives beside the
    first stage. PACK puts the stages of an instance on one node if they fit, else on as few as possible.
    An engine that makes its own workers is one process on one node, which takes what all of them need.
    """

    def __init__(
        self,
        config: ClusterConfig,
        router: str,
        predictor: str,
        environment: Callable[[str], Mapping[str, str]],
    ) -> None:
        """router, predictor: HOST:PORT, to be reached from every node.

        environment: of a module's process; of it what names credentials travels to the nodes, which must
        have the files at the same paths.
        """
        self.provisioner = ""
        self._environment = environment
        self._config = config
        self._router = router
        self._predictor = predictor
        self._numbers = itertools.count()
        self._instances: dict[str, _Instance] = {}

    async def connect(self) -> None:
        """Join the Ray cluster; UnavailableError if there is none."""
        address = self._config.ray_address or "auto"
        try:
            await asyncio.to_thread(
                ray.init, address=address, log_to_driver=self._config.verbose, ignore_reinit_error=True
            )
        except (ConnectionError, RayError, ValueError) as error:
            raise UnavailableError(
                f"no Ray cluster at {address}: {error}; start one with `ray start --head`"
            ) from error

    async def start_instance(self) -> ProvisionedInstance:
        """Part of InstanceProvisioner."""
        number = next(self._numbers)
        instance = _Instance(instance_name(self._config, number), self._reserve(number))
        try:
            await self._wait_for_room(instance)
            specs = self._workers(number)
            instance.workers = [self._actor(instance, spec, stage) for stage, spec in enumerate(specs)]
            addresses = await asyncio.gather(
                *(
                    _ask(worker.start.remote(), ACTOR_TIMEOUT_S + spec.ready_s)
                    for worker, spec in zip(instance.workers, specs, strict=True)
                )
            )
            spec = controller_spec(
                self._config,
                number,
                stages=addresses,
                router=self._router,
                predictor=self._predictor,
                provisioner=self.provisioner,
            )
            instance.controller = self._actor(instance, spec, 0)
            instance.address = await _ask(instance.controller.start.remote(), ACTOR_TIMEOUT_S + spec.ready_s)
            places = [
                await _ask(one.place.remote(), ACTOR_TIMEOUT_S)
                for one in (*instance.workers, instance.controller)
            ]
            instance.place = "; ".join(places)
        except BaseException:
            await self._end(instance)
            raise
        self._instances[instance.name] = instance
        return _provisioned(instance)

    async def stop_instance(self, instance_id: str) -> None:
        """Part of InstanceProvisioner."""
        instance = self._instances.pop(instance_id, None)
        if instance is None:
            names = ", ".join(self._instances) or "none"
            raise NotFoundError(f"this provisioner has no instance {instance_id}; it has: {names}")
        await self._end(instance)

    def instances(self) -> list[ProvisionedInstance]:
        """Part of InstanceProvisioner."""
        return [_provisioned(instance) for instance in self._instances.values()]

    def room(self) -> Room | None:
        """Part of InstanceProvisioner."""
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        bundles = self._bundles()
        (name, each), *_ = bundles[0].items()
        needed = each * len(bundles)
        have = free.get(name, 0.0)
        return Room(int(have // needed), f"{have:g} {name} free in the Ray cluster, {needed:g} an instance")

    async def close(self) -> None:
        """End all instances and leave the cluster."""
        instances, self._instances = list(self._instances.values()), {}
        await asyncio.gather(*(self._end(instance) for instance in instances))
        await asyncio.to_thread(ray.shutdown)

    def _workers(self, number: int) -> list[ChildSpec]:
        """Of an instance whose controller does not make them itself."""
        stages = range(self._config.stages if self._config.engine == "native" else 0)
        return [worker_spec(self._config, number, stage, own_device=True) for stage in stages]

    def _bundles(self) -> list[dict[str, float]]:
        """What an instance takes of each place, where places may be on different nodes."""
        config = self._config
        if config.engine == "native":
            each = {"GPU": 1.0} if config.device.startswith("cuda") else {"CPU": float(config.threads or 1)}
            return [each] * config.stages
        # vLLM takes GPUs where there are any.
        of_cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        name = "GPU" if of_cluster.get("GPU") else "CPU"
        return [{name: float(config.stages * config.tensor_parallel)}]

    def _reserve(self, number: int) -> PlacementGroup:
        group: PlacementGroup = placement_group(
            self._bundles(), strategy="PACK", name=f"tidepipe-{os.getpid()}-{number}"
        )
        return group

    async def _wait_for_room(self, instance: _Instance) -> None:
        # Not `ready()`: that is a task, so a node with room but slow to start a worker would seem full.
        if not await asyncio.to_thread(instance.group.wait, PLACE_TIMEOUT_S):
            bundles = self._bundles()
            wanted = f"{len(bundles)} x {bundles[0]}"
            raise OverloadedError(
                f"the Ray cluster has no room for {wanted} within {PLACE_TIMEOUT_S:g} s; add nodes",
                RETRY_AFTER_MS,
            )

    def _actor(self, instance: _Instance, spec: ChildSpec, bundle: int) -> Any:
        # Late: only nodes and provisioners need it.
        from launcher.provision.hosted import HostedProcess

        # The controller computes next to nothing; only stages own what was reserved, or who makes them.
        owns = spec.module == "stage_worker" or not instance.workers
        resources = self._bundles()[bundle] if owns else {}
        environment = self._environment(spec.module)
        travels = {
            name: value
            for name, value in environment.items()
            if name == "PYTHONPATH" or (name.startswith(_TRAVEL) and name not in (READY_FD, PARENT_PID))
        }
        return (
            ray.remote(HostedProcess)
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    instance.group, placement_group_bundle_index=bundle
                ),
                runtime_env={"env_vars": travels},
            )
            .remote(spec)
        )

    @staticmethod
    async def _end(instance: _Instance) -> None:
        """The controller first: it drains, for which it needs the workers. All is given back in any case."""
        stops = [(instance.controller, KILL_AFTER_S)] if instance.controller is not None else []
        for actor, kill_after_s in (*stops, *((worker, WORKER_KILL_AFTER_S) for worker in instance.workers)):
            try:
                await _ask(actor.stop.remote(kill_after_s), kill_after_s + ACTOR_TIMEOUT_S)
            except UnavailableError as error:
                log.warning("did not end in order", instance=instance.name, reason=str(error))
            ray.kill(actor)
        await asyncio.to_thread(remove_placement_group, instance.group)


async def _ask(reference: Any, timeout: float) -> Any:
    """The answer of an actor; UnavailableError if it fails or does not come in time."""
    try:
        return await asyncio.to_thread(ray.get, reference, timeout=timeout)
    except RayError as error:
        raise UnavailableError(f"a process on the Ray cluster: {str(error).splitlines()[-1]}") from error


def _provisioned(instance: _Instance) -> ProvisionedInstance:
    return ProvisionedInstance(instance.name, instance.address, instance.place)
