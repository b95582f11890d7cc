"""The room of this machine, in instances."""

from __future__ import annotations

import os

import psutil

from launcher.config import ClusterConfig
from launcher.devices import visible_gpus, worker_device
from launcher.provision.provisioner import Room

STAGES_PER_CORE = 2
"""Of a stage that computes on the CPU: more than so many only slow each other down."""
KEPT_FREE = 0.1
"""Share of the memory that stays free: a machine that swaps, or ends processes, serves nobody."""


def machine_room(config: ClusterConfig, there: int, starting: int, instance_bytes: int, most: int) -> Room:
    """For how many more instances of this configuration there is room.

    there: instances that there are, those being started included. instance_bytes: memory of one of them, 0 if
    not known. most: instances in all, whatever the machine.
    """
    memory = psutil.virtual_memory()
    limits = [(most - there, f"{most} instances in all")]
    each = config.stages * config.tensor_parallel
    if config.executor == "torch":
        if worker_device(config.device, 0).startswith("cuda"):
            gpus = visible_gpus()
            limits.append((gpus // each - there, f"{gpus} GPUs, {each} stages each"))
        else:
            cores = len(os.sched_getaffinity(0))
            stages = STAGES_PER_CORE * cores // max(1, config.threads or 1)
            limits.append((stages // each - there, f"{cores} cores, {each} stages an instance"))
    if instance_bytes:
        free = memory.available - KEPT_FREE * memory.total
        # Those being started have not taken theirs yet.
        why = f"{_gib(free)} of memory to spare, {_gib(instance_bytes)} an instance"
        limits.append((int(free // instance_bytes) - starting, why))
    more, why = min(limits)
    return Room(max(0, more), why)


def _gib(size: float) -> str:
    return f"{max(0.0, size) / 2**30:.1f} GiB"
