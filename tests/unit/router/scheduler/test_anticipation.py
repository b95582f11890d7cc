"""Scaling by what will be asked for: the rate and where it goes, what an instance bears, and the steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.scheduler.bearing import modelled
from router.scheduler.demand import Demand
from router.scheduler.events import (
    AddInstance,
    AnswerEnded,
    InstanceJoined,
    InstanceReported,
    InstancesStarting,
    RequestArrived,
    Tick,
)
from router.scheduler.prefill import PrefillTime
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler
from router.scheduler.scaling import AutoScaling, ScalingRules, StartTimes
from router.scheduler.steady_state import Sizes
from tests.unit.router.scheduler.cases import SLO, MillisecondPerToken, facts, request, status
from tidepipe_common.latency.work import chunk_pairs

PREFILL = PrefillTime(MillisecondPerToken())
AMPLE = 100.0
RULES = ScalingRules(SLO, calm_s=1.0, lasting_s=5.0, start_s=30.0)


def arrivals(
    rate: Callable[[float], float], seconds: float, cv: float = 1.0, seed: int = 1
) -> Iterator[float]:
    """Times; gaps are gamma distributed."""
    chance, now, shape = random.Random(seed), 0.0, 1 / cv**2
    while (now := now + chance.gammavariate(shape, 1 / (shape * rate(now)))) < seconds:
        yield now


def scaled(
    scaling: AutoScaling, times: Iterator[float], seconds: int, instances: int
) -> list[tuple[int, int]]:
    """Seconds and changes of the steps; each instance bears 4 requests/s, starts are not carried out."""
    steps, there = [], instances
    come = next(times, 1e9)
    for second in range(1, seconds):
        while come <= second:
            scaling.demand.arrived(request("r", arrived=come), come)
            come = next(times, 1e9)
        if scaling.wants_model(second):
            scaling.look(4.0, second)
        step = scaling.step(there, AMPLE, 0.0, second)
        if step.change:
            steps.append((second, step.change))
            there += step.change
    return steps


def test_what_an_instance_bears_as_reckoned_by_hand() -> None:
    """A millisecond per token and 200 tokens a request: five; fewer where memory, or the target, says so."""
    sizes = Sizes(100.0, 5000.0, 100.0)
    assert modelled(PREFILL, 10_000, sizes, SLO) == pytest.approx(5.0, rel=0.01)
    assert modelled(PREFILL, 10_000, sizes, replace(SLO, tpot_s=0.2)) == pytest.approx(5.0, rel=0.02)

    class WithFixedWork(MillisecondPerToken):
        def linear_s(self, tokens: int) -> float:
            return 0.05 + tokens / 1000

    fixed = PrefillTime(WithFixedWork())
    # Rounds of 95 ms, of which 45 are for tokens.
    assert modelled(fixed, 10**9, sizes, SLO) == pytest.approx(5.0 * 45 / 95, rel=0.05)
    assert modelled(fixed, 10**9, sizes, replace(SLO, tpot_s=0.05)) == 0.0
    # In the least round, 20 requests/s would be 100 sequences of 150 tokens.
    assert modelled(fixed, 300, sizes, SLO) < 1.0


@given(st.floats(1, 4000), st.floats(1, 2000), st.integers(1_000, 10**6))
@settings(max_examples=30, deadline=None)
def test_more_work_is_never_borne_more_often(prompt: float, output: float, kv: int) -> None:
    one = modelled(PREFILL, kv, Sizes(prompt, 0.0, output), SLO)
    for larger in (Sizes(2 * prompt, 0.0, output), Sizes(prompt, 0.0, 2 * output)):
        assert modelled(PREFILL, kv, larger, SLO) <= one * 1.02
    assert modelled(PREFILL, kv // 2, Sizes(prompt, 0.0, output), SLO) <= one * 1.02


def test_a_step_is_seen_at_once_and_a_rise_is_gone_on_with() -> None:
    demand = Demand()
    times = arrivals(lambda now: 8.0 if now < 60 else 35.0, 100)
    seen = {}
    for at in times:
        demand.arrived(request("r", arrived=at), at)
        if demand.fresh and (outlook := demand.outlook()) is not None:
            seen[int(at)] = outlook
    assert seen[59].ahead(30) == pytest.approx(8.0, rel=0.2)
    assert seen[66].rate > 20.0 and seen[75].rate == pytest.approx(33.0, rel=0.15)
    assert seen[75].growth == 0.0, "a step is no trend"
    rising = Demand()
    for at in arrivals(lambda now: 10.0 + now / 4, 120):
        rising.arrived(request("r", arrived=at), at)
    outlook = rising.outlook()
    assert outlook is not None and 40.0 < outlook.ahead(30) < 50.0


def test_answers_are_not_taken_for_short_while_the_long_ones_run() -> None:
    """Half of 10 tokens, half of 400 at one a second per sequence: after a minute only short ones ended."""
    demand = Demand()
    running: list[tuple[int, int]] = []
    for second in range(60):
        demand.arrived(request("r", arrived=second), second)
        demand.sent(100, 0)
        running.append((second, 400 if second % 2 else 10))
        for began, output in list(running):
            if second - began >= output:
                running.remove((began, output))
                demand.ended(100, output)
        demand.held(sum(100 + second - began for began, _ in running))
    assert demand.sizes is not None and 30 < demand.sizes.output < 300


def test_what_of_a_prompt_was_found_is_not_computed() -> None:
    """A quarter of each: of its tokens three quarters are left, and of the pairs of its attention."""
    demand = Demand()
    demand.arrived(request("r", 400, 0.0), 0.0)
    demand.sent(400, 100)
    sizes = demand.sizes
    assert sizes is not None
    assert sizes.prompt == pytest.approx(300)
    assert sizes.found == pytest.approx(100)
    assert sizes.pairs == pytest.approx(0.75 * chunk_pairs(0, 400))


@pytest.mark.parametrize("rules", [None, RULES])
def test_who_failed_to_start_is_not_the_one_that_joins(rules: ScalingRules | None) -> None:
    """An instance that somebody starts by hand says nothing of how long those take that are asked for."""
    scheduler = RoutingScheduler(OverallConfig(scaling=rules))
    if scheduler.scaling is not None:
        scheduler.scaling.starts.asked(1, 0.0)
    for count in (1, 0):
        scheduler.on(InstancesStarting(count), 1.0)
        assert scheduler.starting == count
    scheduler.on(InstanceJoined(facts("i0")), 500.0)
    assert scheduler.scaling is None or scheduler.scaling.starts.seconds == RULES.start_s


def test_several_are_asked_for_at_once_and_no_more_while_they_start() -> None:
    scaling = AutoScaling(RULES)
    steps = scaled(scaling, arrivals(lambda now: 6.0 if now < 60 else 30.0, 150), 150, 2)
    assert sum(change for _, change in steps) == pytest.approx(6, abs=1)
    first = next(change for second, change in steps if second > 60)
    assert first >= 3 and steps[0][0] <= 70


@pytest.mark.parametrize("seed", range(3))
def test_bursts_at_one_rate_change_nothing(seed: int) -> None:
    """20 requests/s with a coefficient of variation of 2, where six bear 24."""
    scaling = AutoScaling(replace(RULES, calm_s=10.0, lasting_s=30.0))
    assert scaled(scaling, arrivals(lambda now: 20.0, 400, 2.0, seed), 400, 6) == []


def test_nobody_leaves_whom_the_forecast_needs() -> None:
    """Slack would pay for it: at 13 requests/s four stay, at 5 two go one by one."""
    scaling = AutoScaling(RULES)
    assert scaled(scaling, arrivals(lambda now: 13.0, 60), 60, 4) == []
    scaling = AutoScaling(RULES)
    steps = scaled(scaling, arrivals(lambda now: 5.0, 90), 90, 4)
    assert [change for _, change in steps] == [-1, -1]


def test_what_is_borne_is_learned() -> None:
    """Late first tokens lower what is expected of an instance, a minute in time raises it."""
    scaling = AutoScaling(replace(RULES, most=4))
    for tenth in range(600):
        now = tenth / 10
        scaling.demand.arrived(request("r", arrived=now), now)
        if tenth % 4 == 0:
            scaling.first_token(3.0, now)
        if scaling.wants_model(now):
            scaling.look(5.0, now)
        scaling.step(1, -1.0, 5.0, now)
    assert scaling.bearing.factor == pytest.approx(0.5, abs=0.1), "2.5 come out, not 5"
    for tenth in range(600, 1500):
        now = tenth / 10
        scaling.demand.arrived(request("r", arrived=now), now)
        scaling.first_token(0.1, now)
        if scaling.wants_model(now):
            scaling.look(5.0, now)
        scaling.step(1, 5.0, 0.0, now)
    assert scaling.bearing.factor == pytest.approx(2.0, abs=0.1), "10 have been borne"


def test_starts_are_timed_and_those_that_fail_forgotten() -> None:
    starts = StartTimes(60.0)
    starts.asked(3, 10.0)
    assert starts.seconds == 60.0
    starts.joined(25.0)
    starts.under_way(3)  # it has registered, and its provisioner has not said so yet
    starts.under_way(1)
    assert starts.seconds == 15.0
    starts.under_way(0)
    starts.joined(99.0)
    assert starts.seconds == 15.0, "nobody asked for that one"


def test_the_router_asks_for_several_by_its_cost_model() -> None:
    """Five requests/s are what one bears (a millisecond per token, 200 tokens a request); twenty come."""
    config = OverallConfig(policy="least-loaded", scaling=ScalingRules(SLO, start_s=10.0))
    scheduler = RoutingScheduler(config)
    scheduler.on(InstanceJoined(facts("i0")), 0.0)
    scheduler.on(InstanceReported("i0", status()), 0.0)
    asked = []
    for twentieth in range(20 * 12):
        now = twentieth / 20
        scheduler.on(RequestArrived(request(f"r{twentieth}", arrived=now)), now)
        scheduler.on(AnswerEnded("i0", 100, 100), now)
        for action in scheduler.on(Tick(), now):
            assert isinstance(action, AddInstance)
            asked.append(action)
            scheduler.on(InstancesStarting(sum(one.count for one in asked)), now)
    assert asked[0].count >= 3 and sum(one.count for one in asked) in (3, 4)
    assert "requests/s" in asked[0].reason and asked[0].numbers["one_bears_per_s"] == pytest.approx(
        5, rel=0.05
    )
