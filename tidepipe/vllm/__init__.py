"""Our brain for users of vLLM, whose requests go in and whose steps come out.

`vllm serve MODEL --scheduler-cls tidepipe.vllm.Scheduler` asks for it.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "Scheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Late, as only vLLM's own process needs it, and only there vLLM is sure to be installed.
    from tidepipe.services import find_services

    find_services()
    from controller.engines.vllm_scheduler.scheduler import Scheduler

    return Scheduler
