"""What a cluster's settings ask of this machine, looked at before any process is started.

A service refuses the same where it is started by hand, but seconds later, and beside others that are about
something else. What only PyTorch can tell (tensors of a checkpoint or an adapter, what a GPU holds) is left
to the stage workers.
"""

from __future__ import annotations

from pathlib import Path

from launcher.config import ClusterConfig
from launcher.devices import device_fault, memory_fault
from tidepipe_common.adapter_config import read_adapter_config
from tidepipe_common.errors import ConfigError, ModelError
from tidepipe_common.http.site import sites
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.regular_files import check_writable
from tidepipe_common.settings.adapters import parse_adapters
from tidepipe_common.settings.offload import parse_offload


def check_settings(config: ClusterConfig) -> None:
    """ConfigError or ModelError for names, places, devices and adapters that cannot be used as they are."""
    sites(config.allow_host, config.allow_origin).check()
    if config.hardware is not None:
        hardware(config.hardware)
    if config.provisioner != "local":
        return  # what the other machines have is seen there
    if config.data_dir is not None:
        check_writable(Path(config.data_dir), folder=True)
    if config.journal is not None:
        # Late: most clusters have none.
        from controller.runtime.journal import check_journal

        check_journal(config.journal)
    if config.engine == "native" and config.executor == "torch" and not config.upstreams:
        _check_stages(config)


def _check_stages(config: ClusterConfig) -> None:
    if fault := device_fault(config.device):
        raise ConfigError(fault)
    if config.memory_gib is not None:
        workers = config.stages * config.instances
        if fault := memory_fault(config.device, config.memory_gib, workers):
            raise ConfigError(fault)
    if config.kv_offload is not None and (folder := parse_offload(config.kv_offload).folder) is not None:
        if not folder.is_dir():
            raise ConfigError(f"--kv-offload cannot make a file in {folder}: there is no such folder")
        check_writable(folder, folder=True)
    for place in parse_adapters(config.lora) if config.lora else ():
        try:
            read_adapter_config(place.folder)
        except ModelError as error:
            raise ModelError(f"adapter {place.name}: {error}") from error


def check_model(config: ClusterConfig, model: Path) -> None:
    """ModelError if its configuration cannot be run; ConfigError if it cannot be split as asked.

    model: where it was found.
    """
    # Late: other commands do without.
    from stage_worker.loading.model_spec import read_spec

    layers = read_spec(model, config.model_code).layers
    if config.stages > layers:
        raise ConfigError(
            f"{config.model} has {layers} layers, and each stage needs one: --stages can be 1 to {layers}, "
            f"not {config.stages}"
        )
    if config.layer_split is not None:
        from controller.scheduler.split import given_split

        given_split([int(count) for count in config.layer_split.split(",")], layers, config.stages)


def check_engine(config: ClusterConfig) -> None:
    """ConfigError if vLLM is not here, or not in a version that works, or its arguments are none.

    A controller would refuse it in the same words. Which models it runs vLLM knows, and says itself.
    """
    from controller.engines.vllm.engine_options import parse_engine_arguments
    from controller.engines.vllm.versions import require_vllm

    require_vllm()
    parse_engine_arguments(config.engine_args or "")
