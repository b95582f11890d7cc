"""The search for the cheapest cluster, with cheap stand-ins for runs; and the processes that do the runs."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from router.scheduler.slo import SloTarget
from simulator.goodput import Figures, Question
from simulator.layouts import Fleet, Layout
from simulator.planner import (
    ALLOWANCE,
    Bounds,
    Choice,
    Outcome,
    Plan,
    Search,
    Trial,
    likeliest_layout,
    make_plan,
)
from simulator.workers import TimeIsUpError, WorkerFailedError, Workers
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.shapes import SHAPES
from workloads.arrivals import MIXES
from workloads.mixes import sharegpt_like

FLEET = Fleet(SHAPES["llama-30b"], hardware("L20"), 1, 8)
QUESTION = Question(sharegpt_like(30, 0), SloTarget(5.0, 0.1))
SYSTEMS = ("padg", "hybrid")
BOUNDS = Bounds(FLEET, QUESTION)


@pytest.fixture(scope="module")
def bounded() -> dict[Choice, float]:
    """What each choice bears by its bound, an instance."""
    search = Search(FLEET, QUESTION, 0.001, SYSTEMS, lambda _: iter(()), lambda _: None, BOUNDS)
    return {one.choice: one.bound for one in search.choices}


class Runs:
    """Stand in for runs: each choice bears so much an instance."""

    def __init__(self, bears: dict[Choice, float]) -> None:
        self.bears, self.asked = bears, 0

    def rate_of(self, choice: Choice, instances: int) -> float:
        return self.bears[choice] * instances

    def __call__(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        for trial in trials:
            self.asked += 1
            most = self.rate_of(trial.choice, trial.instances)
            share = min(1.0, most / trial.rates[0])
            figures = Figures(trial.rates[0], share, share, {}, {}, {}, {}, 0.0, 0)
            if trial.precision:
                yield Outcome(True, most, figures, 1)
            else:
                yield Outcome(share == 1.0, trial.rates[0], figures, 1)


def _plan(runs: Runs, rate: float) -> Plan:
    return make_plan(Search(FLEET, QUESTION, rate, SYSTEMS, runs, lambda _: None, BOUNDS))


def test_what_is_left_out_never_holds_the_answer(bounded: dict[Choice, float]) -> None:
    """Brute force over all choices and instances finds the same number of devices, and no better margin."""
    everything = sum(FLEET.most_instances(choice.layout) for choice in bounded)
    for seed in range(15):
        chance = random.Random(seed)
        most = ALLOWANCE / QUESTION.attainment
        runs = Runs({choice: bound * chance.uniform(0.2, most) for choice, bound in bounded.items()})
        rate = chance.uniform(0.2, 12.0)
        plan = _plan(runs, rate)
        holding = {
            (choice.layout.devices * count, -runs.rate_of(choice, count))
            for choice in bounded
            for count in range(1, FLEET.most_instances(choice.layout) + 1)
            if runs.rate_of(choice, count) >= rate
        }
        if not holding:
            assert not plan.holds
            assert plan.best is not None
            assert plan.goodput is not None
            best = max(runs.rate_of(one, FLEET.most_instances(one.layout)) for one in bounded)
            assert 0 < plan.goodput.rate <= best < rate
            continue
        assert plan.holds
        assert plan.best is not None
        assert plan.best.devices == min(holding)[0]
        assert runs.asked < everything
        # Of those that were compared nothing bears more, but for the step between two rates.
        ours = runs.rate_of(plan.best.choice, plan.best.instances)
        assert all(runs.rate_of(one.choice, one.instances) <= 1.16 * ours for one in plan.others[:3])
        devices = [one.devices for one in plan.frontier]
        assert devices == sorted(set(devices))


def test_what_the_scheduler_itself_does_not_hold_has_failed(bounded: dict[Choice, float]) -> None:
    """The next best is taken, if need be with more devices."""

    class Strict(Runs):
        def __call__(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
            for trial, outcome in zip(trials, super().__call__(trials), strict=True):
                little = Outcome(False, outcome.rate, outcome.figures, 1)
                yield little if trial.exact and trial.choice.layout == refused else outcome

    bears = {choice: 0.8 * bound for choice, bound in bounded.items()}
    plain = _plan(Runs(bears), 2.0)
    assert plain.best is not None
    refused = plain.best.choice.layout
    plan = _plan(Strict(bears), 2.0)
    assert plan.best is not None
    assert plan.best.choice.layout != refused
    assert plan.best.devices >= plain.best.devices
    assert plan.confirmed is not None
    assert plan.confirmed.held


def test_time_that_is_up_leaves_what_was_found(bounded: dict[Choice, float]) -> None:
    """A cluster that holds, without its margin; or nothing, and a word of that."""

    class Short(Runs):
        def __init__(self, bears: dict[Choice, float], most: int) -> None:
            super().__init__(bears)
            self.most = most

        def __call__(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
            for outcome in super().__call__(trials):
                if self.asked > self.most:
                    raise TimeIsUpError("up")
                yield outcome

    bears = {choice: 0.8 * bound for choice, bound in bounded.items()}
    nothing = _plan(Short(bears, 0), 2.0)
    assert nothing.best is None
    assert nothing.unfinished == "the search"
    whole = Runs(bears)
    _plan(whole, 2.0)
    cut = [_plan(Short(bears, most), 2.0) for most in range(1, whole.asked, 9)]
    assert all(plan.unfinished for plan in cut)
    known = [plan.best is not None for plan in cut]
    assert known == sorted(known)
    assert cut[-1].holds


def test_layouts_that_cannot_be_are_named() -> None:
    """Weights that do not fit, heads that are not shared evenly, and what is left."""
    possible, refused = FLEET.layouts(2048)
    why = dict(refused)
    assert Layout(1, 2) in possible
    assert "weights" in why[Layout(1, 1)]
    assert "heads" in why[Layout(1, 8)]
    nodes = Fleet(SHAPES["codellama-34b"], hardware("L20"), 3, 2)
    assert nodes.most_instances(Layout(2, 1)) == 3
    assert nodes.most_instances(Layout(3, 1)) == 2
    assert nodes.spec(Layout(2, 1), 1).hardware.link_gb_s > nodes.spec(Layout(3, 1), 1).hardware.link_gb_s
    with pytest.raises(ConfigError, match="leave no room"):
        Fleet(SHAPES["llama2-70b"], hardware("L20"), 1, 2).layouts(100)


def test_answers_come_in_order_and_processes_end() -> None:
    """Whoever stops reading, whatever fails."""
    with Workers(abs, 2) as workers:
        assert list(workers.ordered([-3, -2, -1])) == [3, 2, 1]
        assert next(workers.ordered([-9, -8, -7])) == 9
        assert list(workers.ordered([-5, -6])) == [5, 6]
        assert len(multiprocessing.active_children()) == 2
        with pytest.raises(WorkerFailedError, match="bad operand"):
            list(workers.ordered(["x"]))  # type: ignore[list-item]
    assert not multiprocessing.active_children()
    with Workers(os._exit, 2) as dying, pytest.raises(WorkerFailedError, match="ended with code 3"):
        list(dying.ordered([3]))
    with Workers(time.sleep, 2, time.monotonic() + 0.2) as slow, pytest.raises(TimeIsUpError):
        list(slow.ordered([60.0, 60.0]))
    assert not multiprocessing.active_children()


def _length(data: bytes, _task: int) -> int:
    return len(data)


def test_a_process_that_cannot_start_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it would have been told more than fits into a pipe."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.setattr(main, "__file__", "/nowhere/main.py", raising=False)
    with Workers(partial(_length, bytes(2**20)), 2) as workers, pytest.raises(WorkerFailedError):
        list(workers.ordered([1, 2]))


def test_a_layout_is_ranked_for_what_runs_in_it() -> None:
    """All-reduces over PCIe: instances of four bear more than of eight, unless roles have halves of eight."""
    fleet = Fleet(SHAPES["qwen2-72b"], hardware("L20"), 4, 8, max_total=4096)
    asked = Question(MIXES["longbench-like"](60, 1).within(4096, 4096), SloTarget(5.0, 0.1))
    eight, four = Layout(1, 8), Layout(1, 4)
    assert likeliest_layout(fleet, asked, "auto", [eight, four]) == four
    bounds = Bounds(fleet, asked)
    assert bounds.of_system(eight, "fudg-intra", {}) > 1.2 * bounds.of_system(eight, "auto", {})
