"""Records work on a GPU as a CUDA graph."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Protocol

import torch

_WARM_UPS = 2
"""Runs before the capture: kernels get compiled and libraries make workspaces, which a capture forbids."""


class Replayable(Protocol):
    """Work that can be done again at the cost of one launch."""

    def replay(self) -> None:
        """Do it, over what now lies at the same addresses."""
        ...


Capture = Callable[[Callable[[], torch.Tensor]], tuple[Replayable, torch.Tensor]]
"""capture(work): the recorded work, and where its result will lie."""


class CudaCapture:
    """Captures graphs that share one pool of memory, as only one of them runs at a time.

    The largest should come first: the others then fit into its memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Replayable, torch.Tensor]:
        """Warm up on a stream of its own, as PyTorch's documentation wants it, and capture."""
        present = torch.cuda.current_stream(self._device)
        aside = _side_stream(self._device)
        aside.wait_stream(present)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                work()
        present.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of this process may use the device for something else meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"):
                result = work()
        except BaseException:
            # If the capture cannot be ended, PyTorch leaves this thread on the side stream and its allocator
            # in the belief that a capture is under way, which never reclaims what other streams have used.
            torch.cuda.set_stream(present)
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(present.device_index, self._pool)
            raise
        return graph, result


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # One for good: cuBLAS keeps a workspace of up to 32 MiB for each stream that it has seen.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
