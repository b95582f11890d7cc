"""Models of one router: each has a scheduler of its own; what they share is room to wait, and names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.scheduler.events import (
    Event,
    InstanceJoined,
    InstanceLeft,
    InstanceReported,
    QueueFull,
    RequestArrived,
    RequestWithdrawn,
    Route,
    Tick,
)
from router.scheduler.mitosis import Bounds
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler, SharedRoom
from tests.unit.router.scheduler.cases import facts, request, status

LIMIT = 6


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.sampled_from("qqqqujltw"), st.integers(0, 5), st.sampled_from("xy")
        ),
        max_size=100,
    )
)
def test_no_assignment_crosses_models_and_the_line_is_one(course: list[tuple[str, str, int, str]]) -> None:
    """Whoever waits for whichever model: together as many as may, one tenant half of them."""
    config = OverallConfig(policy="padg", bounds=Bounds(1, 2), max_pending=LIMIT)
    shared = SharedRoom(LIMIT)
    models = {name: RoutingScheduler(config, shared) for name in "ab"}
    waiting: dict[str, tuple[str, str]] = {}
    for number, (model, kind, pick, tenant) in enumerate(course):
        now, instance = number * 0.2, f"{model}{pick}"
        name = f"{model}-r{number}"
        events: dict[str, Event] = {
            "q": RequestArrived(request(name, 100 + 300 * (pick % 3), now, tenant=tenant)),
            "u": InstanceReported(instance, status(taken=now, accepted=99)),
            "j": InstanceJoined(facts(instance)),
            "l": InstanceLeft(instance),
            "t": Tick(),
            "w": RequestWithdrawn(next((one for one in waiting if one.startswith(model)), "")),
        }
        if kind == "q":
            waiting[name] = (model, tenant)
        if kind == "w":
            waiting.pop(next((one for one in waiting if one.startswith(model)), ""), None)
        full = len(waiting) > LIMIT or sum(of == tenant for _, of in waiting.values()) > LIMIT / 2
        for action in models[model].on(events[kind], now):
            if isinstance(action, Route):
                assert waiting.pop(action.request.request_id)[0] == model
                assert (action.choice.instance_id or "").startswith(model)
            if isinstance(action, QueueFull):
                assert full, "there is room, whichever model it is for"
                del waiting[action.request.request_id]
        assert len(waiting) == sum(len(scheduler.pending) for scheduler in models.values()) <= LIMIT
        assert all(sum(of == who for _, of in waiting.values()) <= LIMIT / 2 for who in "xy")
        assert not models["a"].macros.keys() & models["b"].macros.keys()
