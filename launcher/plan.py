"""The command lines of a cluster's processes."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from launcher.child import ChildSpec
from launcher.config import ClusterConfig
from launcher.devices import worker_device, worker_memory_gib, workers_on_device
from tidepipe_common.settings.command_line import arguments_of
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.settings.defaults import ROUTING_WITH_ROLES
from tidepipe_common.settings.predictor import PredictorSettings
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.settings.service import SecuritySettings, ServiceSettings
from tidepipe_common.settings.stage_worker import StageWorkerSettings
from tidepipe_common.settings.upstream import UpstreamSettings

Settings = TypeVar("Settings", bound=ServiceSettings)

SERVICE_READY_S = 120.0
# A controller is ready when its stages have loaded their layers.
MODEL_READY_S = 600.0


def instance_name(config: ClusterConfig, number: int) -> str:
    """Of an instance of this cluster; at another's router, where others are, one that nobody else has."""
    if config.router is None:
        return f"instance-{number}"
    model = re.sub(r"[^A-Za-z0-9._-]", "-", config.served_names[0])[:100]
    return f"{model}-{socket.gethostname()}-{os.getpid()}-{number}"


def predictor_spec(config: ClusterConfig, state: Path) -> ChildSpec:
    """The length predictor; what it learns is kept in `state`."""
    settings = _settings(PredictorSettings, config, model=config.predictor, state=state)
    return _child("predictor", settings, config, SERVICE_READY_S)


def worker_spec(config: ClusterConfig, instance: int, stage: int, *, own_device: bool = False) -> ChildSpec:
    """One stage of one instance. own_device: it will see no GPU but one of its own (Ray deals them out)."""
    workers = config.stages * config.instances
    if own_device:
        device, sharing = config.device.partition(":")[0], 1
    else:
        device = worker_device(config.device, instance * config.stages + stage)
        sharing = workers_on_device(config.device, workers)
    memory_gib = config.memory_gib
    emulated = config.executor == "emulated"
    if memory_gib is None and not device.startswith("cuda") and not emulated:
        memory_gib = worker_memory_gib(workers)
    settings = _settings(
        StageWorkerSettings,
        config,
        device=device,
        threads=config.stage_threads,
        memory_gib=memory_gib,
        workers_on_device=sharing if sharing > 1 else None,
        profile=config.profile if emulated else None,
    )
    return _child(f"stage-worker-{instance}-{stage}", settings, config, SERVICE_READY_S)


def controller_spec(
    config: ClusterConfig,
    instance: int,
    *,
    stages: Sequence[str],
    router: str,
    predictor: str,
    provisioner: str = "",
) -> ChildSpec:
    """The controller of one instance. stages: its workers' addresses; none if its engine has its own.

    provisioner: what it tells a router that is not ours; see `_at_another_router`.
    """
    native = config.engine == "native"
    own: dict[str, Any] = {}
    if config.instances > 1 and config.provisioner == "local":
        own["machine_share"] = f"{instance}/{config.instances}"
    if native:
        # Of the model its workers are told.
        own = dict.fromkeys(("engine", "model", "dtype", "tensor_parallel", "engine_args", "allow_download"))
    if config.prefill_policy_settings and instance < (config.prefill_instances or 0):
        own["policy_settings"] = config.prefill_policy_settings
    settings = _settings(
        ControllerSettings,
        config,
        **_at_another_router(config, provisioner),
        instance_id=instance_name(config, instance),
        stages=",".join(stages) or str(config.stages),
        router=router,
        predictor=predictor,
        hardware=config.hardware or ("l20" if config.executor == "emulated" else None),
        **own,
    )
    return _child(f"controller-{instance}", settings, config, MODEL_READY_S, relies_on_others=True)


def _at_another_router(config: ClusterConfig, provisioner: str) -> dict[str, Any]:
    """What instances tell of their model; a router of our own is told by us."""
    names = ",".join(config.served_names) if config.router else config.served_model_name
    return {"provisioner": provisioner if config.router else None, "served_model_name": names}


def upstream_spec(config: ClusterConfig, instance: int, *, router: str) -> ChildSpec:
    """The process that stands for one upstream server."""
    settings = _settings(
        UpstreamSettings,
        config,
        **_at_another_router(config, ""),
        url=config.upstreams[instance],
        instance_id=instance_name(config, instance) if config.router else f"upstream-{instance}",
        router=router,
    )
    child = _child(f"upstream-{instance}", settings, config, MODEL_READY_S, relies_on_others=True)
    return replace(child, number=instance)


def router_spec(
    config: ClusterConfig, *, http: str, predictor: str, provisioner: str, run_dir: Path
) -> ChildSpec:
    """The router. run_dir: where files and batches are kept if the configuration names no place."""
    from controller.scheduler.policies.catalog import routing_for

    targets = config.ttft_ms is not None or config.tpot_ms is not None
    routing = config.routing or routing_for(config.policy, targets=targets)
    settings = _settings(
        RouterSettings,
        config,
        http=http,
        predictor=predictor,
        provisioner=provisioner,
        data_dir=config.data_dir or str(run_dir / "router-data"),
        routing=routing,
        # Else they differ by settings of their own alone.
        prefill_instances=config.prefill_instances if routing in ROUTING_WITH_ROLES else None,
    )
    return _child("router", settings, config, SERVICE_READY_S, relies_on_others=True, hands_over=True)


def _settings(service: type[Settings], config: ClusterConfig, **own: Any) -> Settings:
    """Of one service: what the cluster's has under the same name, and its own; None leaves it to the service.

    Who a process is, and whom it trusts, is told by its environment (security.py).
    """
    names = service.model_fields.keys() - SecuritySettings.model_fields.keys()
    values = {name: getattr(config, name) for name in names & ClusterConfig.model_fields.keys()} | own
    return service.model_validate({name: value for name, value in values.items() if value is not None})


def _child(
    name: str,
    settings: ServiceSettings,
    config: ClusterConfig,
    ready_s: float,
    *,
    relies_on_others: bool = False,
    hands_over: bool = False,
) -> ChildSpec:
    return ChildSpec(
        name,
        settings.service,
        arguments_of(settings),
        ready_s,
        relies_on_others,
        config.metrics,
        hands_over=hands_over,
    )
