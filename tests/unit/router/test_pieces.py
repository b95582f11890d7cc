"""Listeners that want the whole answer get it in few pieces, and its end without waiting for the next one."""

from __future__ import annotations

import asyncio
from array import array

from router.requests.entry import Pacing, RequestEntry, Subscription
from router.requests.meter import Unmeasured
from tidepipe_common.types.results import SequenceEnd, SequenceUpdate
from tidepipe_common.types.sampling import FinishReason, SamplingParams

LONG_S = 3600.0


class Host:
    def over(self, entry: RequestEntry) -> None:
        pass


async def test_a_whole_answer_takes_two_pieces_and_ends_at_once() -> None:
    loop = asyncio.get_running_loop()
    sampling = SamplingParams(max_tokens=4)
    host = Host()
    entry = RequestEntry("r", "", sampling, host.over, loop.time, Unmeasured())
    entry.begin([entry.new_answer(0, array("I", [1, 2]), sampling)])
    sizes: list[int] = []

    async def listen() -> None:
        with Subscription(entry, False, lambda: None, Pacing(), LONG_S) as subscription:
            async for deltas in subscription.deltas():
                sizes.extend(len(delta.piece.token_ids) for delta in deltas)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(listen())
        for number in range(4):
            for _ in range(5):
                await asyncio.sleep(0)  # what has come is read now if ever
            end = SequenceEnd("", FinishReason.LENGTH) if number == 3 else None
            entry.answers[0].apply(SequenceUpdate("", number, [number], end=end))
    assert sizes == [1, 3]
