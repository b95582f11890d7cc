"""A router that was succeeded keeps to its successor's instances."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from router.instances import succession
from router.instances.link import InstanceAddress
from router.instances.registry import InstanceRegistry
from router.instances.served_model import NotYetError
from tidepipe_common.errors import IncompatibleError, UnavailableError

OLD, NEW, OTHER = (
    InstanceAddress("one", "127.0.0.1:1", "before"),
    InstanceAddress("one", "127.0.0.1:1", "after"),
    InstanceAddress("two", "127.0.0.1:2", "x"),
)


class _Registry:
    def __init__(self) -> None:
        self.known: list[InstanceAddress] = []

    async def register(self, announced: InstanceAddress, lease_s: float) -> None:
        if announced is OTHER:
            raise IncompatibleError("another model")
        self.known.append(announced)


async def test_leases_and_new_incarnations_come_from_the_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it answers once, it is asked again."""
    answers: list[list[InstanceAddress] | None] = [[OTHER, OLD], None, [NEW]]

    async def instances_of(router: str) -> list[InstanceAddress]:
        assert router == "127.0.0.1:9"
        if (answer := answers.pop(0) if answers else []) is None:
            raise UnavailableError("not now")
        return answer

    monkeypatch.setattr(succession, "instances_of", instances_of)
    monkeypatch.setattr(succession, "FOLLOW_S", 0.001)
    registry = _Registry()
    following = asyncio.create_task(
        succession.follow_successor(cast(InstanceRegistry, registry), "0.0.0.0:9")
    )
    async with asyncio.timeout(10):
        while NEW not in registry.known:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert registry.known[0] is OLD
    following.cancel()


async def test_who_waits_for_a_tokenizer_is_adopted_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further model's: else its requests would be refused by a router that has just taken over."""

    class Loading(_Registry):
        connected: list[InstanceAddress] = []  # noqa: RUF012 (of one test)
        asked = 0

        async def register(self, announced: InstanceAddress, lease_s: float) -> None:
            self.asked += 1
            if announced is OLD and self.asked < 5:
                raise NotYetError("its tokenizer is being loaded")
            await super().register(announced, lease_s)
            self.connected.append(announced)

    async def instances_of(router: str) -> list[InstanceAddress]:
        return [OTHER, OLD]

    monkeypatch.setattr(succession, "instances_of", instances_of)
    monkeypatch.setattr(succession, "RETRY_S", 0.001)
    registry = Loading()
    await succession.adopt_instances(cast(InstanceRegistry, registry), "0.0.0.0:9")
    assert registry.connected == [OLD]
