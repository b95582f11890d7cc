"""The emulated executor: takes its time, checks its plans, and serves a real scheduler."""

from __future__ import annotations

import queue
import struct
import time
from pathlib import Path

import pytest

from stage_worker.epoch import StepRunner
from stage_worker.executors import emulated
from stage_worker.executors.emulated import EmulatedBackend
from stage_worker.executors.protocol import PlanError, StageSpec
from tidepipe_common.types.plan import DecodeRows, Phase, PlanRow, SequenceStart, StepPlan, StepReport
from tidepipe_common.types.sampling import SamplingParams

HALF = StageSpec(0, 2, 0, 20, block_size=16, kv_blocks=0, max_step_tokens=256)
REST = StageSpec(1, 2, 20, 40, block_size=16, kv_blocks=0, max_step_tokens=256)


@pytest.fixture
def backend(tmp_path: Path) -> EmulatedBackend:
    profile = tmp_path / "profile.csv"
    profile.write_text("tokens,ms\n1,40\n256,80\n")
    return EmulatedBackend("llama2-13b", profile=profile)


def prefill(step: int, key: int, count: int) -> StepPlan:
    row = PlanRow(key, 0, count, (1,) * count, (0,), True)
    return StepPlan(step, Phase.PREFILL, (row,), (SequenceStart(key, SamplingParams(), count),))


def test_a_pipeline_takes_the_time_of_the_profile(backend: EmulatedBackend) -> None:
    """Each of two stages about half of the whole model's time; activations have their true size."""
    first, last = backend.configure(HALF), backend.configure(REST)
    start = time.monotonic()
    hidden = first.execute(prefill(1, 7, 10), None).hidden
    middle = time.monotonic()
    sampled = last.execute(prefill(1, 7, 10), hidden).sampled
    end = time.monotonic()
    assert hidden is not None
    assert len(hidden) == 10 * 5120 * 2
    assert sampled is not None
    assert len(sampled.token_ids) == 1
    assert sampled.token_ids[0] not in backend.description.shape.eos_token_ids
    # The point above 10 tokens is 256: 80 ms for the model. Sleeping may take longer, never less; what the
    # first stage slept too long is not added at the second one.
    assert 0.0395 <= middle - start < 0.2
    assert 0.0794 <= end - start < 0.4


class Clock:
    """In place of `time`: sleeping takes exactly as long as it should, and `late_s` more."""

    def __init__(self, late_s: float) -> None:
        self.now = 1000.0
        self.late_s = late_s

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late_s


def test_stages_follow_each_other_as_their_devices_would(
    backend: EmulatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a late wake-up nor the RPC between two stages lengthens a step; the link of the device does."""
    clock = Clock(late_s=0.001)
    monkeypatch.setattr(emulated, "time", clock)
    first, last = backend.configure(HALF), backend.configure(REST)
    one = first.execute(prefill(1, 7, 10), None)
    assert one.hidden is not None
    assert one.seconds is not None
    begun = 1000.0 + one.seconds
    clock.now += 0.004
    two = last.execute(prefill(1, 7, 10), one.hidden)
    assert two.seconds is not None
    link_s = 20e-6 + 10 * 5120 * 2 / 20e9
    assert clock.now == pytest.approx(begun + link_s + two.seconds + clock.late_s, abs=1e-9)


@pytest.mark.parametrize("ended", [3.0, 5e6, float("nan"), float("-inf")])
def test_another_machine_s_clock_is_not_believed(
    ended: float, backend: EmulatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step begins when it came."""
    clock = Clock(late_s=0.0)
    monkeypatch.setattr(emulated, "time", clock)
    hidden = struct.pack("<d", ended) + bytes(10 * 5120 * 2 - 8)
    seconds = backend.configure(REST).execute(prefill(1, 7, 10), hidden).seconds
    assert seconds is not None
    assert clock.now == pytest.approx(1000.0 + seconds, abs=1e-9)


def test_a_stage_reports_what_its_device_took(backend: EmulatedBackend) -> None:
    """And not how long its thread slept: the costs that are learned from reports are the device's."""
    reports: queue.Queue[StepReport] = queue.Queue()
    runner = StepRunner(
        backend.configure(HALF),
        first=True,
        done=lambda plan, hidden, report: reports.put(report),
        failed=lambda failure: None,
    )
    runner.add_plan(prefill(1, 7, 10))
    report = reports.get(timeout=10)
    assert runner.stop(10)
    expected = backend.configure(HALF).execute(prefill(1, 7, 10), None).seconds
    assert report.own.compute_s == pytest.approx(expected, abs=1e-9)


def test_memory_is_that_of_the_device(backend: EmulatedBackend) -> None:
    """0.9 x 48 GB less half of the weights, in blocks of half the layers."""
    executor = backend.configure(HALF)
    assert executor.kv_blocks == pytest.approx((43.2e9 - 12.85e9) / (0.41e6 * 16), rel=0.02)


def test_a_sequence_may_begin_behind_blocks_of_others(backend: EmulatedBackend) -> None:
    """Where whole blocks were found; not within one, and a sequence that has begun goes on where it was."""
    executor = backend.configure(HALF)

    def rows(step: int, key: int, begin: int, starts: bool) -> StepPlan:
        row = PlanRow(key, begin, 5, (1,) * 5, (0, 1, 2), True)
        started = (SequenceStart(key, SamplingParams(), begin + 5),) if starts else ()
        return StepPlan(step, Phase.PREFILL, (row,), started)

    executor.execute(rows(1, 7, 32, True), None)
    with pytest.raises(PlanError, match="position 48 follows 37"):
        executor.execute(rows(2, 7, 48, False), None)
    with pytest.raises(PlanError, match="position 24 follows 0"):
        executor.execute(rows(2, 8, 24, True), None)
    # One token is left of its prompt: it comes among the rows that decode.
    last = DecodeRows((9,), (16,), (1,), ((0, (0, 1)),))
    start = SequenceStart(9, SamplingParams(), 17)
    executor.execute(StepPlan(2, Phase.DECODE, (), (start,), decode=last), None)


def test_gaps_and_unknown_sequences_are_refused(backend: EmulatedBackend) -> None:
    """As a real executor would: a wrong plan never goes unnoticed."""
    executor = backend.configure(HALF)
    executor.execute(prefill(1, 7, 3), None)
    for row in (PlanRow(7, 4, 1, (1,), (), True), PlanRow(8, 0, 1, (1,), (), True)):
        with pytest.raises(PlanError):
            executor.execute(StepPlan(2, Phase.DECODE, (row,)), None)
    with pytest.raises(PlanError, match="256 at most"):
        executor.execute(prefill(3, 9, 300), None)
