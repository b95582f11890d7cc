"""Large things are read one at a time, and nobody's keep others' waiting."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tidepipe_common.aside import INLINE_BYTES, Room, beside
from tidepipe_common.errors import OverloadedError
from tidepipe_common.security.caller import Caller, acting_for

MIB = 2**20


async def test_owners_take_turns_and_who_has_gone_is_left_out() -> None:
    done: list[str] = []
    go_on = threading.Event()

    def asked(owner: str, name: str) -> asyncio.Task[None]:
        with acting_for(Caller(owner)):
            return asyncio.create_task(beside(INLINE_BYTES + 1, lambda: done.append(name)))

    async def first() -> None:
        with acting_for(Caller("a")):
            await beside(INLINE_BYTES + 1, lambda: done.append("a0") if go_on.wait(20) else None)

    tasks = [asyncio.create_task(first())]
    await asyncio.sleep(0)
    tasks += [asked("a", f"a{number}") for number in range(1, 4)]
    tasks += [asked("b", "b1"), gone := asked("b", "gone"), asked("b", "b2"), asked("c", "c1")]
    await asyncio.sleep(0)
    gone.cancel()
    go_on.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert done == ["a0", "a1", "b1", "c1", "a2", "b2", "a3"]
    with pytest.raises(ZeroDivisionError):
        await beside(INLINE_BYTES + 1, lambda: 1 // 0)


def test_nobody_has_all_of_the_room() -> None:
    room = Room(10 * MIB)
    with acting_for(Caller("a")), room.share() as mine:
        mine.grow(5 * MIB)
        with room.share() as more, pytest.raises(OverloadedError, match="5242880 are the most"):
            more.grow(MIB)
        with acting_for(Caller("b")), room.share() as others:
            others.grow(5 * MIB)
            with (
                acting_for(Caller("")),
                room.share() as more,
                pytest.raises(OverloadedError, match="10485760"),
            ):
                more.grow(MIB)
    assert not room.used
    with room.share() as all_of_it:
        all_of_it.grow(10 * MIB)  # where nobody says who they are
