"""The pending queue between tenants: shares of work, and nobody waits for another's thousands."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.scheduler.events import InstanceJoined, InstanceReported, QueueFull, RequestArrived, Route
from router.scheduler.pending import PendingQueue
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler
from tests.unit.router.scheduler.cases import facts, prompt_work, request, status


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2000)), min_size=30, max_size=150),
    st.integers(0, 40),
)
def test_work_is_shared_and_nobody_starves(arrivals: list[tuple[str, int]], lead: int) -> None:
    """While two tenants wait, the work that is done for them differs by less than two requests of the largest
    size, whoever came first and with how much; and all are served, each tenant's in their order."""
    queue, largest = PendingQueue(10_000), 1 + 2000 + 100
    arrivals = [("a", 2000)] * lead + arrivals
    for number, (tenant, prompt) in enumerate(arrivals):
        queue.add(request(f"{number}", prompt, arrived=float(number), tenant=tenant))
    done: Counter[str] = Counter()
    left = Counter(tenant for tenant, _ in arrivals)
    served: list[tuple[str, int]] = []
    while queue:
        expected = queue.ahead(4)
        (first,) = queue.ahead(1)
        assert expected[0] == first
        queue.discard(first.request_id)
        queue.served(first)
        done[first.tenant] += int(first.cost)
        left[first.tenant] -= 1
        served.append((first.tenant, int(first.request_id)))
        waiting = [tenant for tenant, count in left.items() if count]
        assert all(abs(done[one] - done[two]) <= 2 * largest for one in waiting for two in waiting)
    assert len(served) == len(arrivals)
    for tenant in "abc":
        mine = [number for whose, number in served if whose == tenant]
        assert mine == sorted(mine)


def test_one_tenants_thousands_do_not_hold_up_anothers_first() -> None:
    """They wait at the router and not at the instance, fill half of the queue, and the other goes next."""
    scheduler = RoutingScheduler(OverallConfig(policy="least-loaded", max_pending=1000))
    scheduler.on(InstanceJoined(facts("i0")), 0.0)
    scheduler.on(InstanceReported("i0", status()), 0.0)
    actions = [
        action
        for number in range(10_000)
        for action in scheduler.on(RequestArrived(request(f"a{number}", 300, tenant="a")), 0.0)
    ]
    sent = [action for action in actions if isinstance(action, Route)]
    assert 0 < len(sent) < 20 and len(scheduler.pending) == 500
    assert sum(isinstance(action, QueueFull) for action in actions) == 9500 - len(sent)
    scheduler.on(RequestArrived(request("b0", 300, tenant="b")), 0.0)
    report = status(accepted=len(sent), left=prompt_work(300), taken=1.0)
    routes = [one for one in scheduler.on(InstanceReported("i0", report), 1.0) if isinstance(one, Route)]
    assert routes[0].request.request_id == "b0"


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(-5, 5), st.booleans(), st.integers(0, 9)), min_size=1
    )
)
def test_a_priority_is_worth_seconds_and_nobody_waits_for_a_batch(
    arrivals: list[tuple[str, int, bool, int]],
) -> None:
    queue = PendingQueue(1000)
    for number, (tenant, priority, background, at) in enumerate(arrivals):
        said = {"tenant": tenant, "priority": priority, "background": background}
        queue.add(request(f"r{number}", arrived=float(at), **said))
    line = queue.ahead(len(arrivals))
    assert [one.background for one in line] == sorted(one.background for one in line)
    for tenant in "ab":
        turns = [one.turn for one in line if one.tenant == tenant]
        assert turns == sorted(turns)


def test_who_was_idle_has_saved_nothing_up() -> None:
    queue = PendingQueue(1000)
    for number in range(50):
        busy = request(f"a{number}", 100, tenant="a")
        queue.add(busy)
        queue.discard(busy.request_id)
        queue.served(busy)
    for number in range(20):
        queue.add(request(f"a-{number}", 100, tenant="a"))
        queue.add(request(f"b-{number}", 100, tenant="b"))
    assert Counter(one.tenant for one in queue.ahead(10)) == {"a": 5, "b": 5}
