"""Macro instances while some of their members drain: sizes count those that stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.scheduler.events import AddInstance, InstanceJoined, InstancesStarting, Tick
from router.scheduler.mitosis import Bounds, Mitosis
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler
from router.scheduler.scaling import ScalingRules
from tests.unit.router.scheduler.cases import SLO, facts


def test_contraction_keeps_every_group_at_its_least_while_members_drain() -> None:
    """Two groups of N_l = 3: as soon as one gives a member up, the rest become one group."""
    mitosis = Mitosis(Bounds(3, 5))
    for number in range(6):
        mitosis.add(f"i{number}")
    assert [len(mitosis.staying(group)) for group in mitosis.groups] == [3, 3]
    mitosis.leave(mitosis.candidate() or "")
    assert [len(mitosis.staying(group)) for group in mitosis.groups] == [5]
    mitosis.leave(mitosis.candidate() or "")
    assert [len(mitosis.staying(group)) for group in mitosis.groups] == [4]


@given(
    st.integers(1, 4).flatmap(lambda low: st.tuples(st.just(low), st.integers(2 * low - 1, 12))),
    st.lists(st.sampled_from("aaalllgrd"), max_size=80),
)
def test_no_group_is_emptied_below_its_least(bounds: tuple[int, int], course: list[str]) -> None:
    """Expansion, contraction in two steps (drains, gone), drains called off, deaths, in any order.

    A death may leave a group with less than its least, since nobody chose who; merges still overfill none.
    """
    mitosis = Mitosis(Bounds(*bounds))
    leaving: list[str] = []
    deaths = False
    for number, kind in enumerate(course):
        before = {one: home for home in mitosis.groups for one in mitosis.groups[home]}
        if kind == "a":
            mitosis.add(f"i{number}")
        elif kind == "l" and (one := mitosis.candidate()) is not None:
            mitosis.leave(one)
            leaving.append(one)
        elif kind == "g" and leaving:
            mitosis.remove(leaving.pop(0))
        elif kind == "r" and leaving:
            mitosis.resume(leaving.pop())
        elif kind == "d" and before:
            died = sorted(before)[number % len(before)]
            mitosis.remove(died)
            leaving = [one for one in leaving if one != died]
            deaths = True
        sizes = [len(mitosis.staying(group)) for group in mitosis.groups]
        assert all(size <= bounds[1] for size in sizes)
        if len(sizes) > 1 and not deaths:
            assert min(sizes) >= bounds[0]


def test_instances_that_are_starting_count_for_the_most() -> None:
    """A start may take minutes, in which the queue only grows."""
    rules = ScalingRules(SLO, most=3, calm_s=1.0)
    scheduler = RoutingScheduler(OverallConfig(policy="least-loaded", scaling=rules))
    scheduler.on(InstanceJoined(facts("i0")), 0.0)
    assert scheduler.scaling is not None
    started = 0
    for second in range(2, 60):
        scheduler.scaling.first_token(5.0, second)
        for action in scheduler.on(Tick(), second):
            assert isinstance(action, AddInstance)
            started += 1
            scheduler.on(InstancesStarting(started), second)
    assert started == 2
