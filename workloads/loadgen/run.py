"""The run of a load, and the search for the rate that a server bears."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tidepipe_common.telemetry.loop_lag import lags
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
    """Send each request when it is due; return when all have ended.

    A turn is due a while after the answer to the one before, whose tokens are in its prompt if they are
    known. A conversation ends with a turn that has no answer: those behind it count as that one does.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()

    def clock() -> float:
        return loop.time() - start

    outcomes = [Outcome(request.due) for request in requests]
    next_turn = {one.after: index for index, one in enumerate(requests) if one.after is not None}
    answers: dict[int, list[int]] = {}
    sent = ended = 0

    async def send(index: int) -> None:
        nonlocal sent, ended
        request, outcome = requests[index].with_answers(answers), outcomes[index]
        await asyncio.sleep(max(0.0, outcome.due - clock()))
        sent += 1
        progress(sent, ended)
        await _send(target, request, outcome, clock, timeout_s)
        ended += 1
        progress(sent, ended)

    async def converse(first: int) -> None:
        turn: int | None = first
        while turn is not None:
            await send(turn)
            outcome, following = outcomes[turn], next_turn.get(turn)
            if following is not None and outcome.ok:
                outcomes[following].due += outcome.ended
                if len(outcome.token_ids) == outcome.output_tokens:
                    answers[turn] = outcome.token_ids
            while following is not None and not outcome.ok:
                now, error = outcome.ended, outcome.error or "no tokens"
                outcomes[following] = Outcome(now, now, now, rejected=outcome.rejected, error=error)
                following = next_turn.get(following)
            turn = following

    async with asyncio.TaskGroup() as group:
        first = [index for index, one in enumerate(requests) if one.after is None]
        for index in sorted(first, key=lambda one: requests[one].due):
            await asyncio.sleep(max(0.0, requests[index].due - clock()))
            group.create_task(converse(index))
    return outcomes


async def send_watched(
    target: Target, requests: Sequence[LoadRequest], timeout_s: float, progress: Progress = _silent
) -> tuple[list[Outcome], list[float]]:
    """`send_all`, and by how much the client's own event loop was late meanwhile, seconds each time."""
    late: list[float] = []

    async def watch() -> None:
        async for lag, _ in lags():
            late.append(lag)

    watching = asyncio.create_task(watch())
    try:
        return await send_all(target, requests, timeout_s, progress), late
    finally:
        watching.cancel()


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
