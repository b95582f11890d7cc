"""Instances with KV blocks of several sizes: beginnings are named by one of them, and by it alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from router.instances.directory import InstanceDirectory
from router.instances.link import InstanceAddress, InstanceLink
from router.instances.registry import InstanceRegistry
from router.scheduler.events import Event, InstanceReported
from router.scheduler.instance_report import InstanceReport
from tests.unit.router.scheduler.cases import status
from tidepipe_common.errors import OverloadedError
from tidepipe_common.notifier import Notifier
from tidepipe_common.types.holdings import PrefixHoldings


def report(block_size: int) -> InstanceReport:
    return status(holdings=PrefixHoldings(1, True, block_size, 8))


def instance(name: str) -> Any:
    return SimpleNamespace(
        instance_id=name,
        open=True,
        count_base=0,
        report=None,
        routing_facts=lambda: None,
        restart_count=lambda: None,
    )


def test_a_size_stays_while_an_instance_has_it() -> None:
    events: list[Event] = []
    scheduler: Any = SimpleNamespace(view=lambda name: None)
    directory = InstanceDirectory(scheduler, events.append, Notifier())
    first, second = instance("first"), instance("second")

    def tells(link: Any, block_size: int) -> tuple[int, bool]:
        """The size by which beginnings are named then, and whether the core hears what is held."""
        link.report = report(block_size)
        directory.reported(link, link.report)
        heard = events[-1]
        assert isinstance(heard, InstanceReported)
        return directory.block_size, heard.status.holdings is not None

    directory.attach(first)
    directory.attach(second)
    assert tells(first, 0) == (0, False)
    assert tells(first, 16) == (16, True)
    assert tells(second, 64) == (16, False)
    assert tells(first, 16) == (16, True)
    first.open = False
    assert tells(second, 64) == (64, True)


async def test_who_is_being_asked_what_it_is_has_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def describe(link: InstanceLink) -> None:
        asked.set()
        await asyncio.Event().wait()

    async def admit(facts: object) -> Any:
        raise AssertionError

    monkeypatch.setattr("router.instances.registry.MAX_INSTANCES", 1)
    monkeypatch.setattr(InstanceLink, "describe", describe)
    registry = InstanceRegistry("r", admit, Notifier(), lambda: 0.0)
    running = asyncio.create_task(registry.run())
    await asyncio.sleep(0)
    joining = asyncio.create_task(registry.register(InstanceAddress("a", "127.0.0.1:1", ""), 5.0))
    await asked.wait()
    with pytest.raises(OverloadedError):
        async with asyncio.timeout(5):
            await registry.register(InstanceAddress("b", "127.0.0.1:1", ""), 5.0)
    for task in (joining, running):
        task.cancel()
    await asyncio.gather(joining, running, return_exceptions=True)
