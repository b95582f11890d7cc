"""Places for requests of batches: fair between owners, and never lost."""

from __future__ import annotations

import asyncio

from router.batches.places import Places


async def test_who_has_fewest_goes_first_and_nothing_is_lost() -> None:
    places = Places(4, {"a": 3}.get)
    for _ in range(3):
        await places.acquire("a")
    waiting = [asyncio.create_task(places.acquire("a")) for _ in range(5)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)  # its key has no more
    await places.acquire("b")
    second = asyncio.create_task(places.acquire("b"))
    await asyncio.sleep(0)
    places.release("a")
    await second  # b has one, a two
    aside = asyncio.create_task(places.aside("a", 0.05))
    await asyncio.sleep(0)
    await places.acquire("c")  # the place of the one that waits; no other line of a takes it
    assert not any(task.done() for task in waiting)
    aside.cancel()
    await asyncio.gather(aside, return_exceptions=True)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for owner in ("a", "a", "b", "b", "c"):
        places.release(owner)
    async with asyncio.timeout(5):
        for owner in ("x", "y", "z", "z"):
            await places.acquire(owner)
    late = asyncio.create_task(places.acquire("x"))
    await asyncio.sleep(0)
    assert not late.done()
    late.cancel()
