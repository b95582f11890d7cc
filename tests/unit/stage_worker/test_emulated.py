"""The emulated executor: takes its time, checks its plans, and serves a real scheduler."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stage_worker.executors.emulated import EmulatedBackend
from stage_worker.executors.protocol import PlanError, StageSpec
from tidepipe_common.types.plan import Phase, PlanRow, SequenceStart, StepPlan
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
    # The point above 10 tokens is 256: 80 ms for the model. Sleeping may take longer, never less.
    assert 0.0395 <= middle - start < 0.2
    assert 0.0399 <= end - middle < 0.2


def test_memory_is_that_of_the_device(backend: EmulatedBackend) -> None:
    """0.9 x 48 GB less half of the weights, in blocks of half the layers."""
    executor = backend.configure(HALF)
    assert executor.kv_blocks == pytest.approx((43.2e9 - 12.85e9) / (0.41e6 * 16), rel=0.02)


def test_gaps_and_unknown_sequences_are_refused(backend: EmulatedBackend) -> None:
    """As a real executor would: a wrong plan never goes unnoticed."""
    executor = backend.configure(HALF)
    executor.execute(prefill(1, 7, 3), None)
    for row in (PlanRow(7, 4, 1, (1,), (), True), PlanRow(8, 0, 1, (1,), (), True)):
        with pytest.raises(PlanError):
            executor.execute(StepPlan(2, Phase.DECODE, (row,)), None)
    with pytest.raises(PlanError, match="256 at most"):
        executor.execute(prefill(3, 9, 300), None)
