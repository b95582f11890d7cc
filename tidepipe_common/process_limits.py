"""Limits of a process that tries out what strangers send: the system ends it if it takes more."""

from __future__ import annotations

import resource
import signal


def limit_process(most_bytes: int, cpu_s: float) -> None:
    """For this process, from now on: address space in bytes, processor time in seconds, no core file."""
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Its default is to end the process, whatever it is in the middle of.
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
