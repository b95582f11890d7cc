"""What an instance says of itself adds up: a simulated run, told to a recorder as a live one would be."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.runtime.activity_recorder import ActivityRecorder
from controller.scheduler.actions import Dispatch, Finish, PhaseSwitched, Reason
from controller.scheduler.events import LengthPredicted, Tick
from simulator.offline import PipelineSpec, run_offline
from simulator.predictions import predictor
from simulator.record import Recording
from tidepipe.cli.main import app
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.types.plan import Phase, PlanRow, StageTimes, StepPlan, StepReport
from tidepipe_common.types.sampling import FinishReason
from workloads.mixes import sharegpt_like


def test_spans_shares_and_bubbles() -> None:
    """Two stages: stage 1 is busy for half of the time that the instance works; idle time is no bubble."""
    activity = ActivityRecorder(2)
    activity.note(
        Tick(), [PhaseSwitched(Phase.IDLE, Phase.MIXED, Reason("work", {"waiting": 3}))], 100.0, 0.0
    )
    for step in range(1, 11):
        row = PlanRow(1, step, 1, (5,), (), True)
        activity.note(Tick(), [Dispatch(StepPlan(step, Phase.MIXED, (row,)))], 99.0 + step, 0.0)
        # Reports come a little late; the stages' own times count.
        activity.stage_done(0, StepReport(step, StageTimes(1.0)), 100.0 + step + 0.01 * (step % 3))
        told = activity.stage_done(1, StepReport(step, StageTimes(0.5, 0.5, 0.0, 0.25)), 100.5 + step)
        assert told == ((1.0, 0.5), (0.0, 0.25))
    activity.note(Tick(), [PhaseSwitched(Phase.MIXED, Phase.IDLE, Reason("all done"))], 110.0, 0.0)
    assert activity.working_s(150.0) == pytest.approx(10.0)
    assert activity.bubble_shares(150.0) == pytest.approx((0.0, 0.5))
    timeline = activity.timeline("i", since=0.0, offset_s=1000.0)
    first = [span for span in timeline.spans if span.stage == 0]
    assert [span.step_id for span in first] == list(range(1, 11))
    # No two steps of a stage overlap, and none ends after its report.
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(first))
    assert all(span.end_s <= 1100.02 + span.step_id + 1e-9 for span in first)
    assert timeline.turns[0].reason == "work (waiting 3)"
    assert not activity.timeline("i", since=120.0, offset_s=0.0).spans


def test_what_the_last_stage_tells_of_others_is_as_if_they_had_told_it() -> None:
    """But for when: they have ended before the stages behind them computed."""
    row = PlanRow(1, 1, 1, (5,), (), True)
    each, last = ActivityRecorder(2), ActivityRecorder(2)
    for recorder in (each, last):
        recorder.note(Tick(), [Dispatch(StepPlan(1, Phase.MIXED, (row,)))], 99.0, 0.0)
    first, second = StageTimes(1.0, 0.25, 0.0, 0.125), StageTimes(0.5, 0.25)
    each.stage_done(0, StepReport(1, first), 100.0)
    told = each.stage_done(1, StepReport(1, second), 100.5)
    assert last.stage_done(1, StepReport(1, second, before=(first,)), 100.5) == told
    assert last.timeline("i", 0.0, 0.0).spans == each.timeline("i", 0.0, 0.0).spans
    assert len(last.timeline("i", 0.0, 0.0).spans) == 2


def test_a_watcher_misses_no_span_of_a_stage_long_before_the_last() -> None:
    """Of eight stages that take a second each the first one's part is over for seven when it is told of."""
    activity, told = ActivityRecorder(8), list[tuple[int, int]]()
    row = PlanRow(1, 1, 1, (5,), (), True)
    for step in range(1, 6):
        now = 100.0 + 8.0 * step
        activity.note(Tick(), [Dispatch(StepPlan(step, Phase.MIXED, (row,)))], now - 8.0, 0.0)
        took = StageTimes(1.0, 7.0)
        activity.stage_done(7, StepReport(step, took, before=(took,) * 7), now)
        spans = activity.timeline("i", since=now - 0.5, offset_s=0.0).spans
        told += [(span.step_id, span.stage) for span in spans]
    assert told == [(step, stage) for step in range(1, 6) for stage in range(8)]


def test_forecast_error_counts_natural_ends_only() -> None:
    """An output that was cut says nothing."""
    activity = ActivityRecorder(1)
    for name, length, reason in (("a", 30, FinishReason.STOP), ("b", 5, FinishReason.LENGTH)):
        activity.note(LengthPredicted(name, 20.0, 40.0), [Finish(name, reason, length)], 1.0, 0.0)
    assert (activity.scored, activity.forecast_error()) == (1, 10.0)


def test_a_simulated_run_as_a_trace(tmp_path: Path) -> None:
    """Lanes of the file are busy as long as the simulator says the stages are."""
    spec = PipelineSpec(read_shape("llama2-13b"), hardware("l20"), 2, max_total=2048)
    recording = Recording()
    run = run_offline(spec, "auto", sharegpt_like(40, seed=1), predictor("oracle"), 0, None, recording)
    timeline = recording.timeline("auto")
    for stage, share in enumerate(run.result.stage_busy):
        busy = sum(span.end_s - span.start_s for span in timeline.spans if span.stage == stage)
        assert busy == pytest.approx(share * run.result.makespan_s)
    trace = tmp_path / "trace.json"
    arguments = "sim offline --model-shape llama2-13b --hardware L20 --stages 2 --workload sharegpt-like"
    done = CliRunner().invoke(
        app, [*arguments.split(), "--requests", "20", "--policy", "auto,td-pipe", "--trace", str(trace)]
    )
    assert done.exit_code == 0, done.output
    events = json.loads(trace.read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {"auto", "td-pipe"}
