"""Device, data type and memory that a stage worker may use."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from stage_worker.models.native.build import cpu_flags
from stage_worker.models.native.library import load_kernels
from stage_worker.models.spec import DTYPES
from tidepipe_common.device_name import DEVICES, cuda_index, is_device, missing_device
from tidepipe_common.errors import ConfigError
from tidepipe_common.text.text import quoted

_CUDA_SHARE = 0.90
_CUDA_RESERVE = 2 << 30
"""Bytes left free at least: activations, workspaces of attention, graphs, sampling."""
_CPU_SHARE = 0.25
_CGROUP_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
_TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of that name; auto: CUDA if there is one. ConfigError for what is not there."""
    if not is_device(name):
        raise ConfigError(f"device must be {DEVICES}, got {quoted(name)}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if missing := missing_device(name, count):
        raise ConfigError(missing)
    index = cuda_index(name) if name != "auto" else 0 if count else None
    return torch.device("cpu") if index is None else torch.device("cuda", index)


def choose_dtype(name: str, native: str, device: torch.device) -> torch.dtype:
    """`auto` or one of DTYPES; native: the checkpoint's own.

    On a CPU `auto` is bfloat16 for half-precision checkpoints if that is fast there, else float32; on a GPU
    that has no bfloat16 arithmetic (before Ampere) float16.
    """
    if name in _TORCH_DTYPES:
        return _TORCH_DTYPES[name]
    if name != "auto":
        raise ConfigError(f"dtype must be auto, {', '.join(DTYPES)}, got {name!r}")
    if device.type == "cuda":
        if native == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0):
            return torch.float16
        return _TORCH_DTYPES[native]
    return torch.bfloat16 if native != "float32" and has_fast_bfloat16() else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The name in DTYPES."""
    return str(dtype).removeprefix("torch.")


def has_fast_bfloat16() -> bool:
    """True if bfloat16 is at least as fast as float32 on this CPU.

    With dot products (AVX-512 BF16 or AMX) it is, in PyTorch too; with vectors of eight and more it is in
    TidePipe's kernels, which then have half as much to read.
    """
    if not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"}):
        return True
    kernels = load_kernels(torch.bfloat16, 1)
    return kernels is not None and kernels.variant != "plain"


def default_memory_budget(device: torch.device, workers: int = 1) -> int:
    """Bytes for weights and KV blocks if nobody says: most of a GPU, a quarter of a shared host's memory.

    workers: that share a GPU.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return gpu_budget(free, workers)
    return int(_CPU_SHARE * _available_memory())


def gpu_budget(free: int, workers: int) -> int:
    """One worker's part, bytes, of a GPU with so much free memory that `workers` of them share."""
    part = free // workers
    return max(part // 2, min(int(_CUDA_SHARE * part), part - _CUDA_RESERVE))


def _available_memory() -> int:
    """Memory that this process could still get, bytes, with a container's limit minded."""
    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file in _CGROUP_FILES:
        try:
            limit, usage = (int(file.read_text()) for file in (limit_file, usage_file))
        except (OSError, ValueError):
            continue  # no such controller, or no limit ("max")
        available = min(available, max(0, limit - usage))
    return available
