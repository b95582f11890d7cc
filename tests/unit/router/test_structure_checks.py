"""Trials of structures: owners take turns, places and queues are bounded, and one structure is one trial."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from router.text import structure_checks
from router.text.structure_checks import AT_A_TIME, MAX_WAITING_OF_ONE, MOST_OF_ONE, StructureChecks
from tidepipe_common.errors import OverloadedError, UnavailableError
from tidepipe_common.types.structure import Structure


class SlowProcess:
    """A StructureProcess whose trials last until they are told to end."""

    def __init__(self, *_: object) -> None:
        self.begun: list[str] = []
        self.ends: dict[str, threading.Event] = {}
        self.news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def problem(self, structure: Structure) -> str:
        end = self.ends[structure.text] = threading.Event()
        self.begun.append(structure.text)
        self._loop.call_soon_threadsafe(self.news.set)
        end.wait(20)
        return ""

    def close(self) -> None:
        for end in self.ends.values():
            end.set()


@pytest.fixture
async def checks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[StructureChecks, SlowProcess]]:
    slow = SlowProcess()
    monkeypatch.setattr(structure_checks, "StructureProcess", lambda *_: slow)
    made = StructureChecks(str, 10, (1,))
    yield made, slow
    made.close()


async def begun(slow: SlowProcess, *names: str) -> None:
    """Once these have begun, whichever first, and no other."""
    async with asyncio.timeout(10):
        while len(slow.begun) < len(names):
            await slow.news.wait()
            slow.news.clear()
    await asyncio.sleep(0.02)
    assert sorted(slow.begun) == sorted(names)


def regex(name: str) -> Structure:
    return Structure("regex", name)


async def test_nobody_waits_for_anothers_slow_structures(checks: tuple[StructureChecks, SlowProcess]) -> None:
    made, slow = checks
    greedy = [asyncio.create_task(made.check(regex(f"a{n}"), "a")) for n in range(8)]
    await begun(slow, "a0", "a1")
    assert MOST_OF_ONE == 2 and AT_A_TIME == 3
    other = asyncio.create_task(made.check(regex("b"), "b"))
    await begun(slow, "a0", "a1", "b")
    late = asyncio.create_task(made.check(regex("c"), "c"))
    again = asyncio.create_task(
        made.check(regex("a7"), "c")
    )  # as the last of a's: one trial, when c's turn comes
    await asyncio.sleep(0.01)
    for name in ("a0", "b"):
        slow.ends[name].set()
    await begun(slow, "a0", "a1", "b", "a2", "c")
    await other
    slow.ends["c"].set()
    await begun(slow, "a0", "a1", "b", "a2", "c", "a7")
    slow.ends["a7"].set()
    await asyncio.gather(late, again, greedy[7])
    assert not greedy[6].done()
    for task in greedy:
        task.cancel()  # those that have not begun never do
    await asyncio.gather(*greedy, return_exceptions=True)
    for name in ("a1", "a2"):
        slow.ends[name].set()
    fresh = asyncio.create_task(made.check(regex("d"), "a"))
    await begun(slow, "a0", "a1", "b", "a2", "c", "a7", "d")
    slow.ends["d"].set()
    await fresh
    await made.check(regex("d"), "e")  # remembered


async def test_queues_are_bounded_for_each_and_for_all(checks: tuple[StructureChecks, SlowProcess]) -> None:
    made, slow = checks
    tasks = [asyncio.create_task(made.check(regex(f"a{n}"), "a")) for n in range(MOST_OF_ONE)]
    await begun(slow, "a0", "a1")
    for owner in "ab":
        tasks += [
            asyncio.create_task(made.check(regex(f"{owner}-{n}"), owner)) for n in range(MAX_WAITING_OF_ONE)
        ]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await made.check(regex(f"{owner} more"), owner)
    tasks.append(asyncio.create_task(made.check(regex("b more"), "b")))  # one of b's has begun
    await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError):
        await made.check(regex("c"), "c")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_waits_when_it_ends_is_told_to_come_again(
    checks: tuple[StructureChecks, SlowProcess],
) -> None:
    made, slow = checks
    tasks = [asyncio.create_task(made.check(regex(f"a{n}"), "a")) for n in range(4)]
    await begun(slow, "a0", "a1")
    made.close()
    for task in tasks:
        with pytest.raises(UnavailableError):
            await task
