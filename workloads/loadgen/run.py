"""Sends a load and searches for the rate that a server bears."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from workloads.goodput import search_goodput
from workloads.loadgen.figures import Figures
from workloads.loadgen.outcome import Outcome
from workloads.loadgen.requests import LoadRequest
from workloads.loadgen.targets import Clock, Target

Measure = Callable[[float], Awaitable[Figures]]
"""One run at a rate."""

Progress = Callable[[int, int], None]
"""Is told how many requests were sent, and how many have ended."""

LEAST = 0.01
"""Of the rate that a search begins at: lower ones are not tried."""


def _silent(sent: int, ended: int) -> None:
    pass


async def send_all(
    target: Target, requests: Sequence[LoadRequest], timeout_s: float, progress: Progress = _silent
) -> list[Outcome]:
    """Send each request when it is due; return when all have ended."""
    loop = asyncio.get_running_loop()
    start = loop.time()

    def clock() -> float:
        return loop.time() - start

    outcomes = [Outcome(request.due) for request in requests]
    sent = ended = 0

    async def send(request: LoadRequest, outcome: Outcome) -> None:
        nonlocal ended
        await _send(target, request, outcome, clock, timeout_s)
        ended += 1
        progress(sent, ended)

    async with asyncio.TaskGroup() as group:
        for request, outcome in zip(requests, outcomes, strict=True):
            await asyncio.sleep(max(0.0, request.due - clock()))
            group.create_task(send(request, outcome))
            sent += 1
            progress(sent, ended)
    return outcomes


async def _send(
    target: Target, request: LoadRequest, outcome: Outcome, clock: Clock, timeout_s: float
) -> None:
    outcome.sent = clock()
    await target.send(request, outcome, clock, timeout_s)
    outcome.ended = clock()


async def find_goodput(measure: Measure, attainment: float, begin: float, precision: float) -> float:
    """The rate up to which `attainment` of the requests meet both targets, see `search_goodput`."""
    search = search_goodput(begin, begin * LEAST, precision)
    rate = next(search)
    while True:
        borne = (await measure(rate)).attainment >= attainment
        try:
            rate = search.send(borne)
        except StopIteration as end:
            return float(end.value)
