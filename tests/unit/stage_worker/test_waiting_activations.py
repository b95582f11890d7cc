"""Activations that wait at a stage are bounded by their bytes: whoever sends them waits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from stage_worker import epoch as epochs
from stage_worker.epoch import Epoch, WorkAccount
from stage_worker.executors.protocol import StageSpec, StepOutput
from tests.fakes.stage_backend import SHAPE, FakeExecutor
from tidepipe_common.types.plan import Phase, PlanRow, StepPlan

LAST = StageSpec(1, 2, 2, SHAPE.layers, 16, 32, 64)
STEP_BYTES = 3 * SHAPE.hidden * 4


class Slow(FakeExecutor):
    """Waits for a nod before each step."""

    def __init__(self) -> None:
        super().__init__(LAST)
        self.nods = threading.Semaphore(0)

    def execute(self, plan: StepPlan, hidden: bytes | memoryview | None) -> StepOutput:
        self.nods.acquire(timeout=10)
        return super().execute(plan, hidden)


async def test_who_brings_too_much_waits_for_a_step_or_the_epochs_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However large one step is, it may come when nothing else waits."""
    monkeypatch.setattr(epochs, "MAX_WAITING_BYTES", 2 * STEP_BYTES)
    executor = Slow()
    epoch = Epoch(1, LAST, executor, "", 1 << 20, WorkAccount())

    async def waits(nbytes: int) -> asyncio.Task[None]:
        task = asyncio.create_task(epoch.room(nbytes))
        await asyncio.sleep(0.01)
        return task

    assert (await waits(10 * STEP_BYTES)).done()
    for step in (1, 2):
        epoch.add_plan(StepPlan(step, Phase.PREFILL, (PlanRow(1, 0, 3, (), (0,), True),)))
        assert (await waits(STEP_BYTES)).done()
        epoch.add_activation(step, bytes(STEP_BYTES))
    waiting = await waits(1)
    assert not waiting.done()
    executor.nods.release()
    async with asyncio.timeout(10):
        await waiting
    waiting = await waits(2 * STEP_BYTES)
    assert not waiting.done()
    ending = asyncio.create_task(epoch.end())
    async with asyncio.timeout(10):
        await waiting
        executor.nods.release()
        await ending
