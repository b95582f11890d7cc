"""The library of compiled kernels, whose work is split over threads."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog
import torch

from stage_worker.models.native.build import BuildError, Variant, compiled, usable_variants
from stage_worker.pages import Arena
from stage_worker.priority import compute_as_batch_work

SWITCH = "TIDEPIPE_NATIVE"
"""Environment variable; 0 leaves everything to PyTorch."""

_log = structlog.get_logger()


Kernel = Callable[[object, int, int], None]
"""kernel(byref(structure), begin, end); releases the GIL."""


class NativeKernels:
    """The kernels for one data type, and the threads they run on.

    threads: how many share the work of a kernel. arena: where weights go.
    """

    def __init__(self, variant: Variant, dtype: torch.dtype, threads: int) -> None:
        self.variant = variant.name
        self.dtype = dtype
        self.pair = 2 if dtype == torch.bfloat16 else 1
        self.threads = threads
        self.arena = Arena()
        self._pool = (
            ThreadPoolExecutor(threads - 1, "kernels", compute_as_batch_work) if threads > 1 else None
        )
        library = ctypes.CDLL(os.fsdecode(compiled(variant, bfloat16=dtype == torch.bfloat16)))
        self.product = _kernel(library, "tidepipe_product")
        self.norm = _kernel(library, "tidepipe_norm")
        self.swiglu = _kernel(library, "tidepipe_swiglu")
        self.store_kv = _kernel(library, "tidepipe_store_kv")
        self.attend = _kernel(library, "tidepipe_attend")
        self.quantize = _kernel(library, "tidepipe_quantize")
        self.layers = _kernel(library, "tidepipe_layers")

    def run(self, kernel: Kernel, arguments: object, total: int, least: int = 1) -> None:
        """Run a kernel over 0 .. total - 1, in equal parts of at least `least`, one per thread."""
        parts = min(self.threads, total // least)
        if parts <= 1 or self._pool is None:
            kernel(arguments, 0, total)
            return
        self.run_parts(kernel, arguments, [total * part // parts for part in range(parts + 1)])

    def run_parts(self, kernel: Kernel, arguments: object, bounds: Sequence[int]) -> None:
        """Run a kernel over the ranges between `bounds`, each on a thread."""
        if self._pool is None or len(bounds) == 2:
            kernel(arguments, bounds[0], bounds[-1])
            return
        own, *rest = itertools.pairwise(bounds)
        others = [self._pool.submit(kernel, arguments, *part) for part in rest]
        kernel(arguments, *own)
        for other in others:
            other.result()


def _kernel(library: ctypes.CDLL, name: str) -> Kernel:
    function = getattr(library, name)
    function.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    function.restype = None
    kernel: Kernel = function
    return kernel


def load_kernels(dtype: torch.dtype, threads: int) -> NativeKernels | None:
    """The best kernels that this CPU can run; None, with a line in the log, if there are none."""
    kernels = kernels_or_reason(dtype, threads)
    return None if isinstance(kernels, str) else kernels


def kernels_or_reason(dtype: torch.dtype, threads: int) -> NativeKernels | str:
    """The best kernels that this CPU can run, or why there are none: what is wrong, and what to do."""
    if os.environ.get(SWITCH) == "0":
        return f"no native kernels: {SWITCH} is 0"
    if dtype not in (torch.float32, torch.bfloat16):
        return "no native kernels for float16 on CPUs; use bfloat16 or float32"
    reasons: list[str] = []
    for variant in usable_variants(bfloat16=dtype == torch.bfloat16):
        try:
            kernels = NativeKernels(variant, dtype, threads)
        except (BuildError, OSError, AttributeError) as error:
            reasons.append(str(error))
            continue
        if reasons:  # a compiler that is older than this CPU
            _log.warning("slower kernels are used", kernels=variant.name, reason=reasons[0])
        return kernels
    _warn_once(reasons[0])
    return f"no native kernels: {reasons[0]}"


@functools.cache
def _warn_once(reason: str) -> None:
    _log.warning("no native kernels, PyTorch computes everything (several times slower)", reason=reason)
