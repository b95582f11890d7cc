"""A dispatcher keeps nothing of a sequence that has left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from router.instances.dispatcher import Dispatcher, WaitingRules
from router.instances.sequence import NO_PREFIX
from router.scheduler.choice import Choice
from router.scheduler.events import Action, Event, HandOver, RequestArrived, Route
from router.scheduler.slo import SloClasses
from tidepipe_common.types.sampling import SamplingParams


class Core:
    """A routing core that sends everybody to `i`, from where they are to go on at `j`."""

    policy_name = "auto"
    flows = False

    def __init__(self) -> None:
        self.wishes: list[str] = []

    def view(self, name: str) -> None:
        return None

    def on(self, event: Event, now: float) -> list[Action]:
        if not isinstance(event, RequestArrived):
            return []
        self.wishes.append(event.request.wish)
        return [
            Route(event.request, "macro", Choice("i", "", {})),
            HandOver(event.request.request_id, "i", "j", ""),
        ]


def sequence(key: str) -> Any:
    return SimpleNamespace(
        key=key, prompt=[1], output=[], sampling=SamplingParams(max_tokens=4), finished=False,
        arrived=0.0, ttft_s=None, tpot_s=None, tenant="", priority=0, background=False, adapter="",
        prefix=NO_PREFIX, has_moved=False, trace_context="",
    )  # fmt: skip


def test_where_a_withdrawn_sequence_was_to_go_is_forgotten() -> None:
    core: Any = Core()
    dispatcher = Dispatcher(core, WaitingRules(SloClasses(), 60.0), lambda one: one.key, lambda: 0.0)
    link: Any = SimpleNamespace(
        instance_id="i", open=True, hands_over=True, facts=None, lacking=lambda needs: frozenset(),
        place=lambda placement: None, withdraw=lambda placement: None, hand_over=len,
    )  # fmt: skip
    dispatcher.directory.attach(link)
    for _ in range(2):
        one = sequence("a")
        dispatcher.submit(one)
        dispatcher.withdraw(one)
    assert core.wishes == ["", ""]
    assert not dispatcher.busy
