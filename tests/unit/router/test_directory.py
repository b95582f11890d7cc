"""Instances with KV blocks of several sizes: beginnings are named by one of them, and by it alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from router.instances.directory import InstanceDirectory
from router.scheduler.events import Event, InstanceReported
from router.scheduler.instance_report import InstanceReport
from tests.unit.router.scheduler.cases import status
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
