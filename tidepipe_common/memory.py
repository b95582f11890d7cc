"""The process's memory: given back when it is free, and looked through by the collector rarely."""

from __future__ import annotations

import contextlib
import ctypes
import gc

LARGE_BLOCK_BYTES = 1024 * 1024
_M_MMAP_THRESHOLD = -3


def give_back_large_blocks() -> None:
    """Free blocks of a megabyte go back to the system at once; for a service that sees few of them.

    glibc raises its own threshold with the largest block that was freed, up to 32 MB, and keeps smaller ones:
    a gigabyte, after some large messages in several threads.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def return_freed() -> None:
    """Hand back to the system what is free; the C library would keep tens of megabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def settle() -> None:
    """What is here now stays: the collector, which stops every thread, need not look at it again."""
    gc.collect()
    gc.freeze()


def forget_tracebacks(error: BaseException) -> None:
    """Let go of what the functions held that raised it, and what it came from: messages of many megabytes."""
    seen: BaseException | None = error
    while seen is not None and seen.__traceback__ is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
