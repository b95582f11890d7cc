"""The number of instances that an operator asked for: bounded, kept, and tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.autoscaling import fleet as module
from router.autoscaling.fleet import Fleet
from router.autoscaling.provisioner import StartedInstance, Stock
from router.scheduler.events import AddInstance, InstancesStarting
from router.scheduler.mitosis import Bounds, Mitosis
from router.scheduler.slo import SloTarget
from tidepipe_common.errors import InvalidRequestError, UnavailableError


class Machines:
    """A provisioner, and the registry and dispatcher of a router that its instances join."""

    def __init__(self, instances: int, room: int) -> None:
        self.mitosis = Mitosis(Bounds(1, 2))
        self.links: dict[str, Any] = {}
        self.more = room
        self.failures = 0
        self.asked = 0
        self.registers_early = False
        self.away = False
        self.slow = asyncio.Event()
        self.slow.set()
        self.made = 0
        self.told: list[int] = []
        self.on_scaling: Callable[[AddInstance], None] = lambda wish: None
        self.deserted: Callable[[], bool] = lambda: False
        self.scheduler = SimpleNamespace(scaling=None, mitosis=self.mitosis)
        self.directory = SimpleNamespace(silent=lambda link: self.mitosis.leave(link.instance_id))
        for _ in range(instances):
            self.join()

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.links.values()))

    def handle(self, event: Any) -> None:
        if isinstance(event, InstancesStarting):
            self.told.append(event.count)

    def evacuate(self, link: Any, reason: str) -> int:
        return 0

    def join(self) -> str:
        name = f"i{self.made}"
        self.made += 1
        self.links[name] = SimpleNamespace(
            instance_id=name, set_aside=False, draining=False, placements=(), open=True
        )
        self.mitosis.add(name)
        return name

    async def start(self) -> StartedInstance:
        if self.registers_early:
            name = self.join()
            await self.slow.wait()
            return StartedInstance(name, "127.0.0.1:1", "here")
        await self.slow.wait()
        if self.failures:
            self.failures -= 1
            raise UnavailableError("out of luck")
        return StartedInstance(self.join(), "127.0.0.1:1", "here")

    async def stop(self, name: str) -> None:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("out of luck")
        del self.links[name]
        self.mitosis.remove(name)

    async def stock(self) -> Stock:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise UnavailableError("not there")
        return Stock(frozenset(self.links), self.more, "so many cores")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_S", "FIRST_RETRY_S", "DRAIN_POLL_S"):
        monkeypatch.setattr(module, name, 0.01)


async def running(machines: Machines) -> AsyncIterator[Fleet]:
    any_machines = cast(Any, machines)
    clock = asyncio.get_running_loop().time
    fleet = Fleet(any_machines, any_machines, machines, clock, SloTarget(1.0, 0.1))
    task = asyncio.create_task(fleet.run())
    await asyncio.sleep(0)
    try:
        yield fleet
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(machines: Machines, fleet: Fleet, count: int) -> None:
    async with asyncio.timeout(20):
        while len(machines.links) != count or fleet.starting or fleet.stopping:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_the_machines_do_not_hold_needs_force() -> None:
    machines = Machines(1, room=1)
    async for fleet in running(machines):
        with pytest.raises(InvalidRequestError, match=r"room for 1 more.*2 in all.*so many cores.*--force"):
            await fleet.scale_to(99)
        assert not fleet.starting
        await fleet.scale_to(2)
        await until(machines, fleet, 2)
        machines.more = 0
        await fleet.scale_to(3, force=True)
        await until(machines, fleet, 3)


async def test_the_last_instance_is_not_stopped_by_the_way() -> None:
    machines = Machines(2, room=9)
    async for fleet in running(machines):
        with pytest.raises(InvalidRequestError, match=r"503.*--force"):
            await fleet.scale_to(0)
        assert not machines.deserted()
        await fleet.scale_to(0, force=True)
        await until(machines, fleet, 0)
        assert machines.deserted()


async def test_a_number_is_kept_and_tried_again() -> None:
    """Starts that fail, an instance that is lost for good, stops that fail."""
    machines = Machines(1, room=9)
    async for fleet in running(machines):
        machines.failures = 3
        await fleet.scale_to(3)
        await until(machines, fleet, 3)
        await machines.stop("i0")
        await until(machines, fleet, 3)
        machines.failures = 2
        await fleet.scale_to(1)
        await until(machines, fleet, 1)
        assert machines.failures == 0


async def test_a_change_of_mind_gives_up_what_is_starting_first() -> None:
    """Many, then one: the one that serves goes on serving."""
    machines = Machines(1, room=200)
    async for fleet in running(machines):
        machines.slow.clear()
        await fleet.scale_to(99)
        assert len(fleet.starting) == module.AT_ONCE
        await fleet.scale_to(1)
        await until(machines, fleet, 1)
        assert list(machines.links) == ["i0"]
        assert machines.told[-1] == 0


async def test_one_that_is_being_started_counts_once_when_it_has_registered() -> None:
    """It does so before its provisioner says that it serves; it is not taken for one too many."""
    machines = Machines(1, room=9)
    machines.registers_early = True
    async for fleet in running(machines):
        machines.slow.clear()
        await fleet.scale_to(2)
        await asyncio.sleep(0.1)
        assert len(machines.links) == 2 and fleet.starting and not fleet.stopping
        assert fleet.staying == 2
        machines.slow.set()
        await until(machines, fleet, 2)
        await fleet.scale_to(4)
        await until(machines, fleet, 4)
        assert list(machines.links) == ["i0", "i1", "i2", "i3"], "none was given up, none taken away"


async def test_two_who_add_one_each_at_the_same_moment_get_two() -> None:
    machines = Machines(1, room=9)
    async for fleet in running(machines):
        machines.slow.clear()
        assert sorted(await asyncio.gather(fleet.scale_by(1), fleet.scale_by(1))) == [2, 3]
        machines.slow.set()
        await until(machines, fleet, 3)
        asked = machines.asked
        await fleet.scale_by(-1)
        assert machines.asked in (asked + 1, asked + 2), "once, and perhaps by the look that comes by itself"


async def test_more_than_there_are_cannot_be_removed() -> None:
    machines = Machines(1, room=9)
    async for fleet in running(machines):
        with pytest.raises(InvalidRequestError, match=r"^there is 1 instance; at most 1 can be removed$"):
            await fleet.scale_by(-5)
        with pytest.raises(InvalidRequestError, match="at most 1023 can be added"):
            await fleet.scale_by(1024)
        with pytest.raises(InvalidRequestError, match="0 to 1024 instances, not 1025"):
            await fleet.scale_to(1025)
        assert fleet.wanted is None


async def test_without_the_provisioner_nobody_starts_what_may_not_fit() -> None:
    machines = Machines(2, room=9)
    async for fleet in running(machines):
        machines.away = True
        with pytest.raises(UnavailableError, match=r"room.*--force"):
            await fleet.scale_to(3)
        assert fleet.wanted is None
        await fleet.scale_to(1)
        await until(machines, fleet, 1)


async def test_the_last_one_is_not_drained_by_the_way() -> None:
    """Then requests get 503 instead of waiting for whoever may take it back."""
    machines = Machines(1, room=9)
    async for fleet in running(machines):
        with pytest.raises(InvalidRequestError, match=r"i0.*503.*--force"):
            fleet.drain("i0", resume=False)
        assert not machines.links["i0"].set_aside and not machines.deserted()
        fleet.drain("i0", resume=False, force=True)
        fleet.drain("i0", resume=False)
        assert machines.deserted()
        fleet.drain("i0", resume=True)
        assert not machines.deserted()


async def test_several_that_are_wished_at_once_start_in_turns_and_not_again_while_starts_fail() -> None:
    machines = Machines(1, room=99)
    async for fleet in running(machines):
        machines.slow.clear()
        machines.on_scaling(AddInstance("a step", {}, 6))
        await asyncio.sleep(0.05)
        assert len(fleet.starting) == machines.told[-1] == 6
        assert machines.asked == module.AT_ONCE, "the others wait for their turn"
        machines.slow.set()
        await until(machines, fleet, 7)
        machines.failures = 2
        machines.on_scaling(AddInstance("another", {}, 2))
        await until(machines, fleet, 7)
        fleet._try_again = fleet._clock() + 60.0
        machines.on_scaling(AddInstance("another", {}, 2))
        assert not fleet.starting and machines.told[-1] == 0, "the core hears that nothing starts"
