"""What vLLM's engine is told: our settings in its words, and those of the user."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.scheduler.split import stage_layers
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.files import read_shape
from tidepipe_common.limits import MAX_LOGPROBS
from tidepipe_common.settings.defaults import MAX_STEP_TOKENS
from tidepipe_common.types.token_mix import TokenMix

LAYERS = "VLLM_PP_LAYER_PARTITION"
"""Says how many layers each stage has. Without it all have as many, and the last one the head besides."""
MAX_ROWS = 1024
"""Sequences of one step at most, unless `max_num_seqs` among the engine's arguments says otherwise."""
_OURS: Mapping[str, str] = {
    "model": "--model",
    "pipeline_parallel_size": "--stages",
    "tensor_parallel_size": "--tensor-parallel",
    "dtype": "--dtype",
    "block_size": "--block-size",
    "num_gpu_blocks_override": "--kv-blocks",
    "enable_prefix_caching": "--prefix-caching",
}
"""Arguments that have a flag of ours, which is to be used."""
_DECIDED: Mapping[str, str] = {
    "scheduler_cls": "TidePipe schedules",
    "scheduling_policy": "TidePipe schedules",
    "max_num_batched_tokens": "--prefill-tokens says how large steps are",
    "enable_chunked_prefill": "TidePipe computes prompts in chunks",
    "async_scheduling": "TidePipe has steps in flight itself",
    "speculative_config": "speculation is not available",
    "enable_lora": "LoRA is not available",
    "kv_transfer_config": "KV connectors are not available",
    "ec_transfer_config": "encoder connectors are not available",
    "data_parallel_size": "--instances makes replicas",
    "runner": "only models that generate text are served",
}
"""Arguments that nobody may give, and why."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Of one engine. block_size 0: vLLM's choice; kv_blocks 0: what its memory allows.

    more: arguments of vLLM's EngineArgs by name.
    """

    model: str
    path: str
    stages: int
    tensor_parallel: int = 1
    dtype: str = "auto"
    block_size: int = 0
    kv_blocks: int = 0
    more: Mapping[str, Any] | None = None

    @property
    def rows(self) -> int:
        """Sequences of one step at most."""
        return int((self.more or {}).get("max_num_seqs", MAX_ROWS))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of EngineArgs."""
        from controller.engines.vllm.mapping import NULL_BLOCKS

        mine: dict[str, Any] = {
            "model": self.path,
            "served_model_name": self.model,
            "pipeline_parallel_size": self.stages,
            "tensor_parallel_size": self.tensor_parallel,
            "dtype": self.dtype,
            "max_num_batched_tokens": MAX_STEP_TOKENS,
            "max_num_seqs": self.rows,
            "max_logprobs": MAX_LOGPROBS,
            "async_scheduling": False,
            "enable_prefix_caching": False,
            "disable_log_stats": True,
        }
        if self.block_size:
            mine["block_size"] = self.block_size
        if self.kv_blocks:
            mine["num_gpu_blocks_override"] = self.kv_blocks + NULL_BLOCKS
        if self.stages * self.tensor_parallel == 1:
            # It could live in this process, which must answer routers meanwhile, and outlive it.
            mine["distributed_executor_backend"] = "mp"
        return mine | dict(self.more or {})


def parse_engine_arguments(text: str) -> dict[str, Any]:
    """The user's arguments of vLLM's engine, a JSON object; ConfigError names what is wrong."""
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f'--engine-args must be a JSON object such as {{"max_model_len": 4096}}: {error}'
        ) from None
    if not isinstance(found, dict):
        raise ConfigError('--engine-args must be a JSON object such as {"max_model_len": 4096}')
    for name in found:
        if name in _OURS:
            raise ConfigError(f"--engine-args: {name} is what {_OURS[name]} says; give that")
        if name in _DECIDED:
            raise ConfigError(f"--engine-args: {name} cannot be given, {_DECIDED[name]}")
    rows = found.get("max_num_seqs", MAX_ROWS)
    if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= MAX_STEP_TOKENS:
        raise ConfigError(f"--engine-args: max_num_seqs must be 1 to {MAX_STEP_TOKENS}, got {rows!r}")
    return found


def layers_of_stages(path: Path, stages: int, mix: TokenMix, counts: Sequence[int] = ()) -> tuple[int, ...]:
    """Layers of each stage: `counts`, or without those such that all stages take equally long.

    Empty: vLLM divides them, since the model in the folder is of a kind whose costs are not known here.
    ConfigError if the counts do not fit the model, or there are more stages than layers.
    """
    try:
        shape = read_shape(str(path))
    except ConfigError:
        return tuple(counts)
    return tuple(end - begin for begin, end in stage_layers(shape, stages, mix, counts))


def divided_layers(config: Any) -> list[tuple[int, int]]:
    """First layer of each stage, and one past its last, as vLLM divides them. config: its VllmConfig."""
    from vllm.distributed.utils import get_pp_indices

    total = int(config.model_config.hf_text_config.num_hidden_layers)
    stages = int(config.parallel_config.pipeline_parallel_size)
    return [get_pp_indices(total, stage, stages) for stage in range(stages)]


def prepare_environment(share: tuple[int, int], workers: int, layers: Sequence[int], *, asked: bool) -> None:
    """What vLLM reads from the environment; before it is imported. What the user has set there stays.

    share: this instance is number i of n on this machine, which share its devices. workers: of an instance.
    layers: of each stage; empty: as vLLM divides them. asked: they are the user's own.
    """
    if len(layers) > 1 and (asked or LAYERS not in os.environ):
        os.environ[LAYERS] = ",".join(map(str, layers))
    for name, value in {
        # A process that speaks gRPC must not fork.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Its newer runner learns what was sampled on the device, not from our plans.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)
    index, instances = share
    # Alone, vLLM deals devices out itself; cores only by whole NUMA nodes, of which there may be too few.
    if instances > 1 or (not _gpus() and workers > _numa_nodes()):
        _share_devices(index % instances, instances, workers)


def _share_devices(index: int, instances: int, workers: int) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(_gpus())]
    if gpus:
        mine = [gpus[(index * workers + worker) % len(gpus)] for worker in range(workers)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(mine))
    elif "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        cores = sorted(os.sched_getaffinity(0))
        each = max(1, len(cores) // (instances * workers))
        parts = [
            [cores[(first + n) % len(cores)] for n in range(each)]
            for first in range(index * workers * each, (index + 1) * workers * each, each)
        ]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, part)) for part in parts)


def _gpus() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _numa_nodes() -> int:
    return max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))))
