"""What of this machine each stage worker gets: device and memory."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from tidepipe_common.device_name import missing_device

_SHARE_OF_MEMORY = 0.5
_GIB = 2**30


def worker_device(wanted: str, worker: int) -> str:
    """The device of worker number `worker`; several GPUs are dealt out one after the other."""
    if wanted not in ("auto", "cuda"):
        return wanted
    gpus = visible_gpus()
    if gpus == 0 or (wanted == "auto" and not _torch_has_cuda()):
        return wanted
    return f"cuda:{worker % gpus}"


def device_fault(wanted: str) -> str:
    """Why the device cannot be had here, as far as that is known without loading torch; "" if it may be."""
    if not _torch_has_cuda():
        return missing_device(wanted, 0)
    # Where none are counted some may be reached by other ways than these files (WSL, ROCm).
    return missing_device(wanted, visible_gpus() or None)


def workers_on_device(wanted: str, workers: int) -> int:
    """How many of so many workers share the most crowded GPU that `worker_device` deals out; 1 on CPUs."""
    if wanted.startswith("cuda:"):
        return workers
    gpus = visible_gpus() if worker_device(wanted, 0).startswith("cuda:") else 0
    return -(-workers // gpus) if gpus else 1


def worker_memory_gib(workers: int) -> float | None:
    """Memory of each of many workers on the CPU; None if a worker's own default leaves enough for all."""
    if workers <= 2:
        return None
    return round(psutil.virtual_memory().available * _SHARE_OF_MEMORY / workers / _GIB, 3)


def memory_fault(wanted: str, gib: float, workers: int) -> str:
    """Why so many workers cannot have so much memory each; "" if they may. GPUs say it themselves."""
    total = psutil.virtual_memory().total / _GIB
    # Where none are counted there may be some all the same (WSL, ROCm).
    uncounted = wanted == "auto" and _torch_has_cuda()
    if uncounted or worker_device(wanted, 0).startswith("cuda") or gib * workers <= total:
        return ""
    each = f"{gib:g} GiB for each of {workers} stages" if workers > 1 else f"{gib:g} GiB"
    return f"--memory-gib: {each} is more than this machine has, {total:.1f} GiB"


def visible_gpus() -> int:
    """Number of GPUs that a process of this machine sees, found without loading torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([part for part in chosen.split(",") if part.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _torch_has_cuda() -> bool:
    try:
        return "+cpu" not in version("torch")
    except PackageNotFoundError:
        return False
