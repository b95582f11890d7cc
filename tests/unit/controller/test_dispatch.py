"""What a step costs beside computing: measured by the scheduler, whatever waits for stages meanwhile."""

from __future__ import annotations

from collections import deque

import pytest

from controller.scheduler.actions import Dispatch
from controller.scheduler.events import NewSequence, SequencesArrived, StagesReady, StepDone
from controller.scheduler.policies.catalog import make_setup
from controller.scheduler.scheduler import Scheduler
from tests.unit.controller.policy_cases import COST
from tidepipe_common.latency.correction import CorrectedCost
from tidepipe_common.latency.dispatch import DISPATCH_S, MeasuredDispatch
from tidepipe_common.latency.work import work_of
from tidepipe_common.types.plan import SampledTokens, StepPlan
from tidepipe_common.types.sampling import SamplingParams

STAGES = COST.parallel.stages


class SlowWay:
    """Stages that compute as the cost model says, and plans and results that take their time."""

    def __init__(self, way_s: float) -> None:
        self._way_s = way_s
        self._free_at = [0.0] * STAGES
        self.flight: deque[tuple[float, StepDone]] = deque()

    def compute(self, plan: StepPlan, now: float) -> None:
        arrives, spent = now + 0.7 * self._way_s, COST.step_s(work_of(plan))
        waits = []
        for stage, free in enumerate(self._free_at):
            waits.append(max(0.0, arrives - free))
            self._free_at[stage] = max(free, arrives) + spent
            arrives = self._free_at[stage] + COST.transfer_s(plan.tokens)
        sampled = SampledTokens((7,) * plan.samples)
        done = StepDone(plan.step_id, sampled, (spent,) * STAGES, tuple(waits))
        self.flight.append((self._free_at[-1] + 0.3 * self._way_s, done))


@pytest.mark.parametrize("policy", ["hybrid", "separate", "auto"])
def test_the_way_of_results_is_measured_and_what_waits_for_stages_is_not(policy: str) -> None:
    setup = make_setup(policy, cost=COST)
    scheduler = Scheduler(setup.config(4096, (2,)), setup.policy, CorrectedCost(COST))
    stages, way_s = SlowWay(0.004), scheduler.state.dispatch
    assert (way_s.seconds, way_s.steps) == (DISPATCH_S, 0)
    actions = scheduler.on(StagesReady(1, STAGES, 4096), 0.0)
    many = tuple(
        NewSequence(f"r{i}", tuple(range(3, 300)), SamplingParams(max_tokens=30, ignore_eos=True))
        for i in range(40)
    )
    actions += scheduler.on(SequencesArrived(many), 1.0)
    now, steps = 1.0, 0
    while True:
        for action in actions:
            if isinstance(action, Dispatch):
                stages.compute(action.plan, now)
        if not stages.flight:
            break
        now, done = stages.flight.popleft()
        steps += 1
        actions = scheduler.on(done, now)
    assert 16 <= way_s.steps < steps
    assert way_s.seconds == pytest.approx(0.004, abs=1e-6)


def test_no_step_counts_as_measured_while_the_time_is_assumed() -> None:
    way = MeasuredDispatch()
    told = []
    for _ in range(17):
        way.observe(0.011, (0.01,), (0.001,), 0.0)
        told.append((way.measured, round(way.seconds, 6)))
    assert told == [(0, DISPATCH_S)] * 15 + [(16, 0.001), (17, 0.001)]
