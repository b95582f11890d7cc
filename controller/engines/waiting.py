"""The way in which vLLM's processes wait for each other, on CPUs; only vLLM's processes call it."""

from __future__ import annotations

import functools
import time
from typing import Any

NAP_S = 0.0005
"""Between two looks for a message: a tenth of the shortest steps that CPUs compute, and 2 % of a core."""


@functools.cache
def sleep_while_waiting() -> None:
    """Let this process sleep between two looks for a message of vLLM's, instead of looking all the time.

    vLLM's readers of its message queues yield their processor and look again for a second after each message,
    which under load is always. Where a GPU computes, that costs a core that nobody wants. Where CPUs compute,
    it takes a fifth of the core that computes what is waited for. Notifications alone would not do: vLLM lets
    those be lost that follow each other closely.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    wait = SpinCondition.wait

    def nap(condition: Any, timeout_ms: int | None = None) -> None:
        if time.monotonic() <= condition.last_read + condition.busy_loop_s:
            time.sleep(NAP_S)
        else:
            wait(condition, timeout_ms)

    SpinCondition.wait = nap
