"""The overall scheduler: policies in it, its queue, and regrouping under load."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scheduler.events import (
    AddInstance,
    DrainInstance,
    Event,
    Expired,
    InstanceDraining,
    InstanceJoined,
    InstanceLeft,
    InstanceReported,
    MergeMacros,
    QueueFull,
    Regrouped,
    RequestArrived,
    RequestWithdrawn,
    Route,
    SetPolicy,
    Shed,
    SplitMacro,
    Tick,
)
from router.scheduler.mitosis import Bounds
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler
from router.scheduler.scaling import ScalingRules
from tests.unit.router.scheduler.cases import SLO, facts, prompt_work, request, slack, status
from tidepipe_common.errors import ConfigError
from tidepipe_common.settings.defaults import ROUTING_POLICIES


def cluster(instances: int, **config: object) -> RoutingScheduler:
    """Instances i0, i1, .. that are idle."""
    scheduler = RoutingScheduler(OverallConfig(**config))  # type: ignore[arg-type]
    for number in range(instances):
        scheduler.on(InstanceJoined(facts(f"i{number}")), 0.0)
        scheduler.on(InstanceReported(f"i{number}", status()), 0.0)
    return scheduler


def targets(scheduler: RoutingScheduler, count: int, prompt: int = 300) -> list[str | None]:
    """Where `count` requests go; None for those that wait."""
    found: list[str | None] = []
    for number in range(count):
        actions = scheduler.on(RequestArrived(request(f"r{len(found)}-{number}", prompt)), 0.0)
        routes = [action for action in actions if isinstance(action, Route)]
        found.append(routes[0].choice.instance_id if routes else None)
    return found


def test_rolling_activation_fills_one_window_after_the_other() -> None:
    """Three prompts of 0.3 s fit into a window of 1 s; then the next instance's turn, then waiting."""
    scheduler = cluster(2, policy="padg-published")
    assert targets(scheduler, 7) == ["i0", "i0", "i0", "i1", "i1", "i1", None]
    assert "TTFT" in (scheduler.why_waiting("r6-6") or pytest.fail("no reason")).reason
    # i0 has computed its window: the one that waits goes there.
    actions = scheduler.on(InstanceReported("i0", status(taken=1.0, accepted=3)), 1.0)
    assert [a.choice.instance_id for a in actions if isinstance(a, Route)] == ["i0"]


@pytest.mark.parametrize("policy", ROUTING_POLICIES)
def test_every_policy_sends_a_request_where_it_can_be_done(policy: str) -> None:
    """Whoever is less loaded, or holds its beginning; and it waits where nobody can."""
    scheduler = cluster(3, policy=policy)
    for name in ("i0", "i2"):
        view = scheduler.view(name)
        assert view is not None
        view.facts = replace(view.facts, lacks=frozenset(("logprobs", "top_k")))
    wanting = [request(f"r{n}", 50, needs=frozenset(("logprobs",))) for n in range(4)]
    actions = [scheduler.on(RequestArrived(one), 0.7 * n)[0] for n, one in enumerate(wanting)]
    assert [one.choice.instance_id for one in actions if isinstance(one, Route)] == 4 * ["i1"]
    scheduler.on(InstanceDraining("i1"), 3.0)
    assert scheduler.on(RequestArrived(request("last", needs=frozenset(("top_k",)))), 3.0) == []


@pytest.mark.parametrize("policy", ROUTING_POLICIES)
def test_every_policy_serves_and_respects_draining(policy: str) -> None:
    """And explains itself."""
    scheduler = cluster(3, policy=policy)
    scheduler.on(InstanceDraining("i1"), 0.0)
    actions = [scheduler.on(RequestArrived(request(f"r{n}", 50)), 0.7 * n)[0] for n in range(12)]
    chosen = {action.choice.instance_id for action in actions if isinstance(action, Route)}
    assert len(actions) == 12
    assert "i1" not in chosen
    assert all(isinstance(action, Route) and action.choice.reason for action in actions)


def test_the_queue_is_bounded_and_has_deadlines() -> None:
    """Full: refused at once. Too late: expired. Withdrawn: gone."""
    scheduler = cluster(1, max_pending=2)
    assert targets(scheduler, 1, 900) == ["i0"]
    for name, expires in (("a", 5.0), ("b", 9.0)):
        assert not scheduler.on(RequestArrived(request(name, 900, expires=expires)), 0.0)
    (refusal,) = scheduler.on(RequestArrived(request("c", 900)), 0.0)
    assert isinstance(refusal, QueueFull) and refusal.retry_after_s >= 1.0
    busy = status(taken=4.0, window=prompt_work(900), left=prompt_work(900), kv_free=0)
    scheduler.on(InstanceReported("i0", busy), 4.0)
    (late,) = scheduler.on(Tick(), 6.0)
    assert isinstance(late, Expired) and late.request.request_id == "a"
    scheduler.on(RequestWithdrawn("b"), 6.0)
    assert len(scheduler.pending) == 0
    assert not scheduler.on(InstanceReported("i0", status(taken=7.0, accepted=1)), 7.0)


def test_regrouping_takes_along_what_is_known() -> None:
    """A split moves views with what was sent and not yet reported."""
    scheduler = cluster(3, bounds=Bounds(2, 3), policy="round-robin")
    targets(scheduler, 3)
    (split,) = scheduler.on(SplitMacro("macro-1", 1), 0.0)
    assert isinstance(split, Regrouped)
    moved = scheduler.view("i2")
    assert moved is not None and moved.sequences == 1
    assert [len(macro) for macro in scheduler.macros.values()] == [2, 1]
    scheduler.on(MergeMacros("macro-2", "macro-1"), 0.0)
    assert list(scheduler.macros) == ["macro-2"]
    with pytest.raises(ConfigError, match="unknown routing policy"):
        scheduler.on(SetPolicy("best"), 0.0)
    scheduler.on(SetPolicy("least-loaded"), 0.0)
    assert scheduler.macros["macro-2"].policy.name == "least-loaded"
    assert "all have the same" in scheduler.lacks("taichi") and not scheduler.lacks("arrow")
    assert scheduler.policy_name == "least-loaded"


def test_a_wrong_routing_name_is_refused_while_no_instance_is_there() -> None:
    """It would be found out when the next one joins, which then could not."""
    scheduler = cluster(0)
    with pytest.raises(ConfigError, match="unknown routing policy"):
        scheduler.on(SetPolicy("best"), 0.0)
    scheduler.on(InstanceJoined(facts("i0")), 0.0)


def test_automatic_scaling_asks_for_an_instance() -> None:
    """A request that waits longer than its target is overload."""
    scheduler = cluster(1, scaling=ScalingRules(SLO), policy="padg-published")
    scheduler.on(InstanceReported("i0", status(kv_free=0)), 0.0)
    targets(scheduler, 1)
    assert not scheduler.on(Tick(), 0.2)
    assert [type(action) for action in scheduler.on(Tick(), 1.5)] == [AddInstance]


def test_contraction_drains_one_after_the_other() -> None:
    """Nobody is asked twice, and the least number stays."""
    rules = ScalingRules(SLO, least=2, calm_s=1.0, lasting_s=2.0)
    scheduler = cluster(4, scaling=rules)
    drained = []
    for tenth in range(200):
        now = tenth / 10
        for action in scheduler.on(Tick(), now):
            assert isinstance(action, DrainInstance)
            drained.append(action.instance_id)
    assert drained == ["i3", "i2"]


@given(st.lists(st.tuples(st.sampled_from("qqqqujldtsw"), st.integers(0, 9)), max_size=80))
def test_no_request_is_lost(course: list[tuple[str, int]]) -> None:
    """Every request that arrived was routed exactly once, refused, expired, withdrawn, or is pending."""
    scheduler = RoutingScheduler(OverallConfig(policy="padg", bounds=Bounds(1, 2), max_pending=5))
    fate: dict[str, str] = {}
    for number, (kind, pick) in enumerate(course):
        now, name = number * 0.2, f"i{pick}"
        events: dict[str, Event] = {
            "q": RequestArrived(request(f"r{number}", 100 + 300 * (pick % 3), now, expires=now + 3)),
            "u": InstanceReported(name, status(taken=now, accepted=99)),
            "j": InstanceJoined(facts(name)),
            "l": InstanceLeft(name),
            "d": InstanceDraining(name),
            "t": Tick(),
            "s": SplitMacro("macro-1"),
            "w": RequestWithdrawn(f"r{pick}"),
        }
        if kind == "q":
            fate[f"r{number}"] = "pending"
        if kind == "w" and fate.get(f"r{pick}") == "pending":
            fate[f"r{pick}"] = "withdrawn"
        try:
            actions = scheduler.on(events[kind], now)
        except Exception as error:
            assert kind == "s", error
            continue
        for action in actions:
            if isinstance(action, Route | QueueFull | Expired):
                assert fate[action.request.request_id] == "pending"
                fate[action.request.request_id] = type(action).__name__
    pending = [name for name, end in fate.items() if end == "pending"]
    assert len(pending) == len(scheduler.pending)
    assert all(name in scheduler.pending for name in pending)


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    """Two a second get an instance: of those in line a few stay, the others hear it at the next tick."""
    scheduler = cluster(1, policy="padg-published")
    now = 0.0
    shed: list[Shed] = []
    for number in range(400):
        now = 0.05 * number
        arrived = RequestArrived(request(f"r{number}", 500, now, expires=now + 2.0, sheds=True))
        heard = scheduler.on(arrived, now) + scheduler.on(Tick(), now)
        if number % 10 == 0:  # the instance has computed what it had
            heard += scheduler.on(InstanceReported("i0", status(taken=now, accepted=number)), now)
        assert now < 5.0 or not any(isinstance(action, Expired) for action in heard)
        shed += [action for action in heard if isinstance(action, Shed)]
    assert len(shed) > 200
    late = [one for one in shed if one.request.arrived > 5.0]
    assert all(one.wait_s > 1.5 for one in late)
    # Whoever may not be refused waits on.
    scheduler.on(RequestArrived(request("old", 500, now, expires=now + 2.0)), now)
    scheduler.on(Tick(), now + 0.1)
    assert "old" in scheduler.pending


@pytest.mark.parametrize(("others", "served"), [(0, True), (1, False)])
def test_one_alone_is_sent_rather_than_refused(others: int, served: bool) -> None:
    """Only decoding requests stand against it; when there is a queue, they do not pay for it."""
    scheduler = cluster(1, policy="padg")
    scheduler.on(InstanceReported("i0", status(sequences=3, slack=slack(3, 0.05))), 0.0)
    for name in ["one", *(f"other{number}" for number in range(others))]:
        arrived = RequestArrived(request(name, 300, 0.0, expires=0.5, sheds=True))
        assert not scheduler.on(arrived, 0.0)
    sent: list[int] = []
    scheduler.demand.sent = lambda tokens, found: sent.append(tokens)  # type: ignore[method-assign]
    actions = scheduler.on(Tick(), 0.5)
    assert [isinstance(action, Route) for action in actions] == [served] * (1 + others)
    assert sent == [300] * served, "it counts as anybody else who is sent"
    assert not len(scheduler.pending)
