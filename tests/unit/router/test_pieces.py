"""Listeners that want the whole answer get it in few pieces, and its end without waiting for the next one."""

from __future__ import annotations

import asyncio
from array import array

from router.instances.sequence import RoutedSequence, SequenceNews
from router.requests.admission import AdmittedRequest
from router.requests.entry import RequestEntry
from router.requests.meter import Unmeasured
from router.requests.pacing import Pacing
from router.requests.subscription import Subscription
from tidepipe_common.types.sampling import FinishReason, SamplingParams

LONG_S = 3600.0


class Host:
    def withdraw(self, sequence: RoutedSequence) -> None:
        raise AssertionError(f"{sequence} was not cancelled")

    def entry_ended(self, entry: RequestEntry) -> None:
        pass


async def test_a_whole_answer_takes_two_pieces_and_ends_at_once() -> None:
    loop = asyncio.get_running_loop()
    sampling = SamplingParams(max_tokens=4)
    entry = RequestEntry("r", 1, 0, sampling, Host(), loop.time, Unmeasured())
    entry.begin(AdmittedRequest(array("I", [1, 2]), (sampling,), new_text=lambda: None))
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
            finish = FinishReason.LENGTH if number == 3 else None
            entry.answers[0].apply(SequenceNews(number, [number], [], finish, None, "", 0))
    assert sizes == [1, 3]
