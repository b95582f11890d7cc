"""A stage that hangs is noticed, one that is slow is not mistaken for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controller.scheduler.patience import FACTOR, FIRST_S, FLOOR_S, StepWatch
from tests.unit.controller.policy_cases import COST
from tidepipe_common.latency.correction import CorrectedCost
from tidepipe_common.latency.work import work_of
from tidepipe_common.types.plan import Phase, PlanRow, StepPlan


def plan(step_id: int, tokens: int = 64) -> StepPlan:
    return StepPlan(step_id, Phase.PREFILL, (PlanRow(step_id, 0, tokens, (1,) * tokens, (), True),))


def looks(watch: StepWatch, begin: float, end: float) -> float | None:
    """When it is overdue first, looking ten times a second."""
    for tenth in range(int(10 * begin), int(10 * end) + 1):
        if watch.look(tenth / 10) is not None:
            return tenth / 10
    return None


def settled(compiling: bool = False) -> StepWatch:
    """Two stages that have computed a step of 64 tokens at once."""
    watch = StepWatch(2, lambda: COST)
    watch.begin([compiling] * 2)
    watch.look(0.0)
    watch.sent(plan(1))
    watch.reported(0, 1, 0.01)
    watch.reported(1, 1, 0.01)
    return watch


def test_a_stage_that_hangs_is_named_with_its_step() -> None:
    """The second one, which has got its activations; the first one has done its part and is idle."""
    watch = settled()
    watch.sent(plan(2))
    watch.sent(plan(3))
    assert looks(watch, 0.0, FLOOR_S / 2) is None
    watch.reported(0, 2, 0.01)
    watch.reported(0, 3, 0.01)
    at = looks(watch, FLOOR_S / 2, 100.0)
    assert at is not None and 1.5 * FLOOR_S < at < 1.5 * FLOOR_S + FACTOR * 0.1
    late = watch.look(at)
    assert late is not None and (late.stage, late.step_id) == (1, 2)
    watch.begin([False, False])
    assert looks(watch, at, 10 * at) is None


def test_a_sign_of_life_tells_what_a_stage_has_done() -> None:
    """Of steps that the last stage is to report: it is the one that hangs."""
    watch = settled()
    watch.sent(plan(2))
    watch.sent(plan(3))
    watch.passed(0, 3)
    at = looks(watch, 0.0, 100.0)
    assert at is not None and (late := watch.look(at)) is not None
    assert (late.stage, late.step_id) == (1, 2)


def test_first_steps_and_compiles_have_room() -> None:
    """A stage whose pace nobody knows; a size of step that its device has not compiled for."""
    watch = StepWatch(2, lambda: COST)
    watch.begin([False, False])
    watch.sent(plan(1))
    at = looks(watch, 0.0, 1000.0)
    assert at is not None and at > FIRST_S
    for compiling, tokens, room in ((False, 512, False), (True, 64, False), (True, 512, True)):
        watch = settled(compiling)
        watch.sent(plan(2, tokens))
        at = looks(watch, 0.0, 1000.0)
        assert at is not None and (at > FIRST_S) == room


def test_a_pause_of_the_controller_is_not_the_stages() -> None:
    """It was stopped for an hour, as the stages may have been, and looks again."""
    watch = settled()
    watch.sent(plan(2))
    assert watch.look(1.0) is None
    assert watch.look(3600.0) is None


@given(
    slow=st.floats(0.5, 40.0),
    sizes=st.lists(st.integers(1, 512), min_size=1, max_size=40),
    wobble=st.lists(st.floats(0.2, 3.0), min_size=40, max_size=40),
)
def test_a_slow_machine_loses_no_stage(slow: float, sizes: list[int], wobble: list[float]) -> None:
    """Whatever the factor to its profile, which is learned, and however its steps vary."""
    cost = CorrectedCost(COST)
    watch = StepWatch(1, lambda: cost)
    watch.begin([False])
    now = 0.0
    watch.look(now)
    for step_id, (tokens, factor) in enumerate(zip(sizes, wobble, strict=False), start=1):
        step = plan(step_id, tokens)
        watch.sent(step)
        seconds = min(FIRST_S, 100 * slow * factor * COST.linear_s(tokens))
        end = now + seconds
        while now + 0.5 < end:
            now += 0.5
            assert watch.look(now) is None
        watch.reported(0, step_id, seconds)
        cost.observe(step.phase, work_of(step), seconds)
        now = end
