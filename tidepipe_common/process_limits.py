"""Limits of a process that tries out what strangers send: the system ends it if it takes more."""

from __future__ import annotations

import ctypes
import resource
import signal

_PR_SET_PDEATHSIG = 1


def limit_process(most_bytes: int, cpu_s: float) -> None:
    """For this process, from now on: address space in bytes, processor time in seconds, no core file."""
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Its default is to end the process, whatever it is in the middle of.
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def end_with_parent() -> None:
    """Let the kernel end this process as soon as the thread that started it has ended, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
