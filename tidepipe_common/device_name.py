"""Names of devices that stage workers compute on: which there are, and why one cannot be had.

Known to who starts workers and to these; how many devices there are each finds out in its own way, the first
one without loading PyTorch.
"""

from __future__ import annotations

import re

DEVICES = "auto, cpu, cuda or cuda:N"
_NAME = re.compile(r"auto|cpu|cuda(:[0-9]{1,4})?")


def is_device(name: str) -> bool:
    """Is it one of DEVICES?"""
    return _NAME.fullmatch(name) is not None


def cuda_index(name: str) -> int | None:
    """Which of the CUDA devices is meant, the first one if none is named; None: none of them."""
    kind, _, index = name.partition(":")
    return int(index or 0) if kind == "cuda" else None


def missing_device(name: str, cuda_devices: int | None) -> str:
    """Why a device cannot be had where there are so many for CUDA, None: nobody knows; "" if it can be."""
    index = cuda_index(name)
    if index is None or cuda_devices is None or index < cuda_devices:
        return ""
    if cuda_devices:
        return f"device {name} was asked for, but {cuda_devices} CUDA devices are here, from cuda:0 on"
    return (
        f"device {name} was asked for, but PyTorch sees no CUDA device here; use cpu, or install a CUDA "
        "build of PyTorch and a driver"
    )
