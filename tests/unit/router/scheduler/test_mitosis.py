"""Mitosis: the drawn example, laws over any course of events, and the triggers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scheduler.mitosis import Bounds, Mitosis, Move
from router.scheduler.scaling import AutoScaling, ScalingRules
from router.scheduler.slo import SloTarget
from tidepipe_common.errors import ConfigError, NotFoundError


def sizes(mitosis: Mitosis) -> list[int]:
    return [len(members) for members in mitosis.groups.values()]


def test_as_drawn() -> None:
    """N_l = 3, N_u = 6: the course of the paper's figure, up and down again."""
    mitosis = Mitosis(Bounds(3, 6))
    course = []
    for number in range(13):
        mitosis.add(f"i{number}")
        course.append(sizes(mitosis))
    assert course[5:9] == [[6], [4, 3], [5, 3], [6, 3]]
    assert course[11:] == [[6, 6], [6, 4, 3]]
    course = []
    while len(course) < 8:
        mitosis.remove(mitosis.candidate() or "")
        course.append(sizes(mitosis))
    # From the smallest above N_l; two that hold N_u together are merged.
    assert course == [[6, 6], [5, 6], [4, 6], [3, 6], [3, 5], [3, 4], [6], [5]]


def test_the_measured_setting_splits_at_the_twelfth() -> None:
    """N_l = 6, N_u = 11."""
    mitosis = Mitosis(Bounds(6, 11))
    splits = [number for number in range(1, 24) if len(mitosis.add(f"i{number}")) > 1]
    assert splits == [12, 23]


@given(
    st.integers(1, 4).flatmap(lambda low: st.tuples(st.just(low), st.integers(2 * low - 1, 12))),
    st.lists(st.tuples(st.sampled_from("aacrsmv"), st.integers(0, 50)), max_size=120),
)
def test_no_instance_is_lost_or_in_two_places(bounds: tuple[int, int], course: list[tuple[str, int]]) -> None:
    """Whatever happens, by itself or by hand; and the moves that are returned tell exactly what happened."""
    mitosis = Mitosis(Bounds(*bounds))
    alive: set[str] = set()
    homes: dict[str, str] = {}
    by_hand = False
    for number, (kind, pick) in enumerate(course):
        groups = list(mitosis.groups)
        members = sorted(alive)
        moves: list[Move] = []
        try:
            if kind == "a":
                moves = mitosis.add(f"i{number}")
                alive.add(f"i{number}")
            elif kind == "c" and alive:
                leaving = mitosis.candidate() or ""
                moves = mitosis.remove(leaving)
                alive.remove(leaving)
            elif kind == "r" and alive:
                moves = mitosis.remove(members[pick % len(members)])
                alive.remove(members[pick % len(members)])
                by_hand = True
            elif kind == "s" and groups:
                moves = mitosis.split(groups[pick % len(groups)], pick % 5)
                by_hand = True
            elif kind == "m" and groups:
                moves = mitosis.merge(groups[0], groups[pick % len(groups)])
                by_hand = True
            elif kind == "v" and alive:
                moves = mitosis.move(members[pick % len(members)], groups[pick % len(groups)])
                by_hand = True
        except ConfigError:
            moves = []
        for move in moves:
            assert homes.pop(move.instance_id, "") == move.source
            if move.target:
                homes[move.instance_id] = move.target
        present = [one for group in mitosis.groups.values() for one in group]
        assert sorted(present) == sorted(alive)
        assert homes == {one: mitosis.home(one) for one in alive}
        assert all(1 <= size <= bounds[1] for size in sizes(mitosis))
        if not by_hand and len(mitosis.groups) > 1:
            assert min(sizes(mitosis)) >= bounds[0]


def test_mistakes_by_hand_change_nothing() -> None:
    """And say what is wrong."""
    mitosis = Mitosis(Bounds(2, 3))
    for number in range(5):
        mitosis.add(f"i{number}")
    before = {name: list(members) for name, members in mitosis.groups.items()}
    with pytest.raises(ConfigError, match="more than the 3"):
        mitosis.merge(*mitosis.groups)
    with pytest.raises(NotFoundError, match="macro-1, macro-2"):
        mitosis.split("macro-9")
    with pytest.raises(ConfigError, match="a split takes"):
        mitosis.split("macro-2", 5)
    assert mitosis.groups == before
    with pytest.raises(ConfigError, match="do not fit"):
        Bounds(6, 10)


def test_triggers_have_hysteresis() -> None:
    """Out at once under overload, then calm; in only after it looked right for a while."""
    scaling = AutoScaling(ScalingRules(SloTarget(1.0, 0.1), 5, 1.0, calm_s=10, lasting_s=20))
    for _ in range(5):
        scaling.first_token(2.0, 0.0)
    assert scaling.step(4, 0.5, 0.0, 1.0).change == 1
    assert scaling.step(4, 0.5, 3.0, 2.0).change == 0, "the last step must show its effect"
    assert scaling.step(5, 0.5, 3.0, 12.0).change == 1, "who still waits counts as well"
    assert scaling.step(6, 1.0 * 7 / 6 + 0.01, 0.0, 30.0).change == 0
    assert scaling.step(6, 1.0, 0.0, 40.0).change == 0
    assert scaling.step(6, 2.0, 0.0, 45.0).change == 0
    assert scaling.step(6, 2.0, 0.0, 64.0).change == 0
    assert scaling.step(6, 2.0, 0.0, 66.0).change == -1
    assert scaling.step(5, 2.0, 0.0, 67.0).change == 0
