"""The instance that skips says of the same sequences exactly what the controller's report says."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.scheduler.events import StagesReady
from controller.scheduler.policies.auto import AutoPolicy
from controller.scheduler.prompt_pace import PromptPace
from controller.scheduler.report import instance_report
from controller.scheduler.scheduler import Scheduler, SchedulerConfig
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.step_budget import Turnover, coming_of, turnover_of
from router.scheduler.slo import SloTarget
from simulator.cluster_spec import ClusterSpec
from simulator.decode_batch import DecodeBatch
from simulator.exact_instance import ExactInstance, ExactRules
from simulator.fast_forward_instance import FastForwardInstance, InstanceRules
from simulator.goodput import Question
from simulator.job import Job
from simulator.slack import decoding_job, running_rows
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.types.plan import Phase
from tidepipe_common.types.sampling import SamplingParams
from workloads.arrivals import MIXES

CONTEXT, BUDGET, NOW = 4096, 512, 100.0
SINCE = 95.0
"""When the present phase began."""


@dataclass(frozen=True)
class Drawn:
    """One sequence. produced 0: its prompt is under way, up to `computed`, or it waits."""

    prompt: int
    produced: int
    computed: int
    expected: int
    arrival: float
    first: float
    tpot_s: float


drawn = st.builds(
    Drawn,
    prompt=st.integers(1, 900),
    produced=st.integers(0, 400),
    computed=st.integers(0, 900),
    expected=st.integers(1, 5000),
    arrival=st.floats(0.0, 60.0),
    first=st.floats(60.0, 100.0),
    tpot_s=st.sampled_from([0.02, 0.05, 0.1, 0.5]),
)
steps = st.lists(st.tuples(st.integers(0, BUDGET), st.booleans(), st.floats(0.0, 3.0)), max_size=20)


def live(one: Drawn, number: int) -> Sequence:
    sequence = Sequence(
        f"r{number}", (7,) * one.prompt, SamplingParams(max_tokens=None), CONTEXT - one.prompt, one.arrival,
        None, [7] * one.produced, predicted_p50=float(one.expected), tpot_s=one.tpot_s,
        first_token_due=one.arrival + 60.0,
    )  # fmt: skip
    if one.produced:
        sequence.state, sequence.first_token_at = State.DECODE, one.first
    else:
        sequence.planned = min(one.computed, one.prompt - 1)
        sequence.state = State.PREFILL if sequence.planned else State.WAITING
    return sequence


@settings(max_examples=300, deadline=None)
@given(
    sequences=st.lists(drawn, max_size=60),
    stages=st.sampled_from([1, 2, 4]),
    phase=st.sampled_from([Phase.PREFILL, Phase.MIXED, Phase.DECODE]),
    used=st.integers(0, 4000),
    work=steps,
    paid_s=st.sampled_from([None, 0.0, 1e-4, 1e-3]),
)
def test_the_same_slack_latest_resume_and_windows(
    sequences: list[Drawn],
    stages: int,
    phase: Phase,
    used: int,
    work: list[tuple[int, bool, float]],
    paid_s: float | None,
) -> None:
    """To the last bit, for any sequences, in any phase, after any work. paid_s: what a prompt's token cost
    decoding lately, where steps are as large as targets allow."""
    spec = ClusterSpec(read_shape("codellama-34b"), hardware("l20"), 1, 4 // stages, stages)
    cost = spec.latency()
    auto = None if paid_s is None else AutoPolicy(cost)
    scheduler = Scheduler(SchedulerConfig(CONTEXT, (), prefill_tokens=BUDGET), auto)
    scheduler.on(StagesReady(1, stages, 4000), 0.0)
    state = scheduler.state
    state.phase, state.phase_since = phase, SINCE
    rules = InstanceRules(mixed=auto is not None, budget=BUDGET, paced=auto is not None, context=CONTEXT)
    skipping = FastForwardInstance("i", rules, cost, stages, kv_tokens=4000 * 16)
    if auto is not None and skipping._budget is not None and paid_s:
        for budget in (auto._budget, skipping._budget):
            budget._pay(500.0, paid_s, 50.0)
    skipping._phase, skipping._switched = phase, SINCE
    skipping._memory.grow(used * 16)
    at = 50.0
    for tokens, riding, spent in work:
        at += spent
        state.prompt_pace.computed(tokens, riding=riding, now=at)
        skipping._pace.computed(tokens, riding=riding, now=at)
    for number, one in enumerate(sequences):
        scheduler.sequences[f"r{number}"] = live(one, number)
        job = Job(number, one.prompt, 10**6, one.arrival, SloTarget(60.0, one.tpot_s), one.expected)
        if not one.produced:
            skipping._line.add(job)
            job.computed = min(one.computed, one.prompt - 1)
            continue
        job.first = job.begun_at = one.first
        job.generated = one.produced
        if one.first > SINCE and phase is Phase.PREFILL:
            skipping._started.append(job)
        else:
            skipping._decode_batch.join([job])
        state.batches.add(scheduler.sequences[f"r{number}"])
    if sequences:
        state.allocator.extend(scheduler.sequences["r0"], used * 16)
    said = instance_report(scheduler, cost, NOW)
    found = skipping.reckon_slack(NOW)
    assert found == said.slack
    status = skipping.status(NOW, slack=True)
    if said.slack is not None:
        assert status.slack.low_latest == NOW + said.slack.low_latest_s
    assert (status.window.tokens, status.left.tokens) == (said.window.tokens, said.left.tokens)
    assert status.window_deadline - NOW == (said.window_left_s or float("inf"))


@settings(max_examples=200, deadline=None)
@given(st.lists(drawn, max_size=40), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=6))
def test_columns_of_those_that_decode_say_what_each_of_them_does(
    sequences: list[Drawn], course: list[tuple[int, int]]
) -> None:
    """To the last bit, whoever has come and gone: what the size of steps is chosen by."""
    jobs = [
        Job(
            number, one.prompt, one.produced + 50, one.arrival, SloTarget(40.0, one.tpot_s), one.expected,
            generated=one.produced + 1, first=one.first, begun_at=one.first,
            submitted=one.arrival + number / 7,
        )
        for number, one in enumerate(sequences)
    ]  # fmt: skip
    rounds, pace = DecodeBatch(), PromptPace()
    pace.computed(3000, riding=True, now=1.0)
    for number, (most, leaving) in enumerate(course):
        rounds.join(jobs[number::6])
        rounds.go(min(most, rounds.to_next_end) if rounds else most)
        for job in list(rounds)[:leaving]:
            rounds.leave(job)
        each = [decoding_job(job, job.generated + rounds.number - job.start_round, CONTEXT) for job in rounds]
        turnover = [
            Turnover(job.prompt, one.produced + one.ahead, job.arrival + job.slo.ttft_s - job.submitted)
            for one, job in zip(each, rounds, strict=True)
        ]
        timely = [one for one, job in zip(each, rounds, strict=True) if job.first <= job.arrival + 40.0]
        rows, decoding = running_rows(rounds, CONTEXT)
        assert [tuple(row) for row in rows.tolist()] == turnover
        assert [tuple(row) for row in decoding.tolist()] == timely
        assert turnover_of(rows, 9000) == turnover_of(turnover, 9000)
        assert coming_of(pace, rows) == coming_of(pace, turnover)


@pytest.mark.parametrize("system", ["padg", "auto"])
def test_reports_along_a_run_are_those_of_the_scheduler(system: str) -> None:
    """The same requests at the same times: what each tells while steps are under way, and when all end."""
    spec = ClusterSpec(read_shape("codellama-34b"), hardware("l20"), 1, 4, max_total=CONTEXT)
    question = Question(MIXES["sharegpt-like"](400, 1), SloTarget(5.0, 0.1), seconds=25.0, seed=3)
    knobs = {"budget": BUDGET}
    itself = ExactInstance(ExactRules.of(system, knobs), spec)
    rules = InstanceRules(True, BUDGET, system == "auto", context=spec.context, dispatch_s=spec.dispatch_s)
    skipping = FastForwardInstance("i", rules, spec.latency(), 1, spec.kv_tokens())
    pairs = list(zip(question.jobs(5.0)[:120], question.jobs(5.0), strict=False))
    now = 0.0
    for one, other in pairs:
        while now < one.arrival:
            for instance in (itself, skipping):
                instance.advance(now)
            said, found = (instance.status(now, slack=True) for instance in (itself, skipping))
            assert (found.sequences, found.left, found.accepted) == (said.sequences, said.left, said.accepted)
            assert found.kv_peak == pytest.approx(said.kv_peak, abs=3)
            assert found.expected_output == said.expected_output
            assert found.tokens == said.tokens
            assert found.slack.count == said.slack.count
            assert found.window_deadline == pytest.approx(said.window_deadline)
            if abs(said.slack.low_latest - now) < 100.0:
                assert found.slack.low_latest == pytest.approx(said.slack.low_latest, abs=0.02)
            now += 0.037
        itself.submit(one, one.arrival)
        skipping.submit(other, other.arrival)
    itself.drain()
    skipping.drain()
    assert all(abs(one.first - other.first) < 1e-3 for one, other in pairs)
    assert all(abs(one.finished - other.finished) < 1e-3 for one, other in pairs)
