"""The way in which vLLM's processes wait for each other, on CPUs; only vLLM's processes call it."""

from __future__ import annotations

import functools
import time
from typing import Any

LOOK_AGAIN_MS = 5
"""Until who waits looks by himself, since a notification may be lost."""


@functools.cache
def sleep_while_waiting() -> None:
    """Let this process sleep until it is told of a message of vLLM's, instead of looking all the time.

    vLLM's readers of its message queues yield their processor and look again for a second after each message,
    which under load is always. Where a GPU computes, that costs a core that nobody wants. Where CPUs compute,
    it takes a fifth of the core that computes what is waited for. Notifications alone would not do: vLLM lets
    those be lost that follow each other closely.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition, zmq

    wait = SpinCondition.wait

    def sleep(condition: Any, timeout_ms: int | None = None) -> None:
        if time.monotonic() > condition.last_read + condition.busy_loop_s:
            wait(condition, timeout_ms)
        elif condition.local_notify_socket in dict(condition.poller.poll(timeout=LOOK_AGAIN_MS)):
            condition.local_notify_socket.recv(flags=zmq.NOBLOCK, copy=False)

    SpinCondition.wait = sleep
