"""The priority of the compute thread beside the threads and processes that pass messages."""

from __future__ import annotations

import contextlib
import os


def compute_as_batch_work() -> None:
    """Let what wakes up go first, on the calling thread.

    Where all cores compute, a message that waits for a time slice holds up the whole pipeline, while its
    handling takes a fraction of a millisecond. The thread's share of the processor stays the same. Without
    effect where the system has no such class.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
