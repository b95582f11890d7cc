"""The command lines of a cluster's processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.child import ChildSpec
from launcher.config import ClusterConfig
from launcher.devices import worker_device, worker_memory_gib, workers_on_device

SERVICE_READY_S = 120.0
# A controller is ready when its stages have loaded their layers.
MODEL_READY_S = 600.0


def predictor_spec(config: ClusterConfig, state: Path) -> ChildSpec:
    """The length predictor; what it learns is kept in `state`."""
    arguments = _flags(model=config.predictor, state=state, log_level=config.log_level)
    return ChildSpec("predictor", "predictor", arguments, SERVICE_READY_S, False, config.metrics)


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
    arguments = _flags(
        model=config.model,
        device=device,
        dtype=config.dtype,
        quantization=config.quantization,
        fabric=config.fabric,
        threads=config.stage_threads,
        memory_gib=memory_gib,
        workers_on_device=sharing if sharing > 1 else None,
        executor=config.executor,
        profile=config.profile if emulated else None,
        hardware=config.hardware,
        allow_download=config.allow_download,
        log_level=config.log_level,
    )
    name = f"stage-worker-{instance}-{stage}"
    return ChildSpec(name, "stage_worker", arguments, SERVICE_READY_S, False, config.metrics)


def controller_spec(
    config: ClusterConfig, instance: int, *, stages: Sequence[str], router: str, predictor: str
) -> ChildSpec:
    """The controller of one instance."""
    arguments = _flags(
        instance_id=f"instance-{instance}",
        stages=",".join(stages),
        router=router,
        predictor=predictor,
        policy=config.policy,
        profile=config.profile,
        hardware=config.hardware or ("l20" if config.executor == "emulated" else None),
        block_size=config.block_size,
        kv_blocks=config.kv_blocks,
        layer_split=config.layer_split,
        token_mix=config.token_mix,
        prefill_tokens=config.prefill_tokens,
        max_sequences=config.max_sequences,
        max_running=config.max_running,
        reserve=config.reserve,
        policy_settings=config.policy_settings,
        microbatches=config.microbatches,
        journal=config.journal,
        log_level=config.log_level,
    )
    return ChildSpec(f"controller-{instance}", "controller", arguments, MODEL_READY_S, True, config.metrics)


def router_spec(
    config: ClusterConfig, *, http: str, predictor: str, provisioner: str, run_dir: Path
) -> ChildSpec:
    """The router. run_dir: where files and batches are kept if the configuration names no place."""
    from controller.scheduler.policies.catalog import ROUTING

    arguments = _flags(
        http=http,
        model=config.model,
        predictor=predictor,
        provisioner=provisioner,
        data_dir=config.data_dir or str(run_dir / "router-data"),
        routing=config.routing or ROUTING.get(config.policy),
        ttft_ms=config.ttft_ms,
        tpot_ms=config.tpot_ms,
        macro_min=config.macro_min,
        macro_max=config.macro_max,
        max_pending=config.max_pending,
        api_keys=config.api_keys,
        files_max_bytes=config.files_max_bytes,
        files_expire_days=config.files_expire_days,
        allow_host=config.allow_host,
        allow_origin=config.allow_origin,
        max_connections=config.max_connections,
        log_level=config.log_level,
    )
    return ChildSpec("router", "router", arguments, SERVICE_READY_S, True, config.metrics, hands_over=True)


def _flags(**values: Any) -> list[str]:
    """Command-line flags; None and False are left out, True stands alone."""
    flags: list[str] = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        flags.append(f"--{name.replace('_', '-')}")
        if value is not True:
            flags.append(str(value))
    return flags
