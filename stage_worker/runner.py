"""The compute thread of one epoch: takes plans in order, never waits for scheduling if it can help it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from stage_worker.executors.protocol import Executor, PlanError
from tidepipe_common.types.plan import FailureKind, Phase, StageFailure, StepPlan, StepReport

MAX_QUEUED = 64
"""Plans, or activations, that may wait at a stage; far more than a controller ever has in flight."""

log = structlog.get_logger()
Item = TypeVar("Item")


Done = Callable[[StepPlan, bytes | memoryview | None, StepReport], None]
"""(the plan, activations for the next stage if there is one, what to report)"""


@dataclass(slots=True)
class PhaseAccount:
    """Steps of one phase. Times in seconds.

    busy: computing. bubble: idle before a step although its plan was here, so waiting for the stage before.
    plan_wait: idle before a step without its plan: there was no work, or all of it was in flight elsewhere.
    """

    steps: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    bubble_s: float = 0.0
    plan_wait_s: float = 0.0


@dataclass(slots=True)
class WorkAccount:
    """What one worker has done since it started, over all its epochs."""

    phases: defaultdict[Phase, PhaseAccount] = field(default_factory=lambda: defaultdict(PhaseAccount))
    activation_bytes: int = 0
    failures: int = 0

    def count(self, plan: StepPlan, hidden: bytes | memoryview | None, report: StepReport) -> None:
        """A step is done."""
        account = self.phases[plan.phase]
        account.steps += 1
        account.tokens += plan.tokens
        account.busy_s += report.compute_s
        account.plan_wait_s += report.plan_wait_s
        account.bubble_s += report.idle_s - report.plan_wait_s
        if hidden is not None:
            self.activation_bytes += hidden.nbytes if isinstance(hidden, memoryview) else len(hidden)


class QueueOverflowError(Exception):
    """More steps in flight than a correct controller ever has."""


class StepRunner:
    """Runs the steps of one epoch on a thread of its own, so that torch never blocks the event loop.

    On that thread `done` is called for each step, or `failed` and then nothing more.
    """

    def __init__(
        self, executor: Executor, *, first: bool, done: Done, failed: Callable[[StageFailure], None]
    ) -> None:
        self._first = first
        self._plans: queue.Queue[StepPlan | None] = queue.Queue(MAX_QUEUED)
        self._activations: queue.Queue[tuple[int, bytes] | None] = queue.Queue(MAX_QUEUED)
        # The thread's own, gone with it: `done` leads back to who has this runner, and in such a circle an
        # ended epoch would keep a GPU's memory until Python's collector comes by.
        self._thread = threading.Thread(
            target=self._loop, args=(executor, done, failed), name="compute", daemon=True
        )
        self._stopped = threading.Event()
        self._running: tuple[int, float] | None = None
        self._thread.start()

    @property
    def running(self) -> tuple[int, float]:
        """The step that is being computed, and for how long, seconds; zeros if none is."""
        running = self._running
        return (0, 0.0) if running is None else (running[0], time.perf_counter() - running[1])

    def add_plan(self, plan: StepPlan) -> None:
        """A plan came from the controller."""
        self._put(self._plans, plan, "plans")

    def add_activation(self, step_id: int, hidden: bytes) -> None:
        """Activations came from the stage before."""
        self._put(self._activations, (step_id, hidden), "activations")

    @staticmethod
    def _put(line: queue.Queue[Item], item: Item, what: str) -> None:
        try:
            line.put_nowait(item)
        except queue.Full:
            raise QueueOverflowError(f"more than {MAX_QUEUED} {what} wait at this stage") from None

    def stop(self, timeout: float) -> bool:
        """End the thread after the step that it is in; True if it ended in time. Blocks."""
        self._stopped.set()
        for line in (self._plans, self._activations):
            while True:
                try:
                    line.put_nowait(None)
                    break
                except queue.Full:
                    with contextlib.suppress(queue.Empty):
                        line.get_nowait()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _loop(self, executor: Executor, done: Done, failed: Callable[[StageFailure], None]) -> None:
        step_id = 0
        try:
            last_end: float | None = None
            while True:
                plan = self._plans.get()
                planned = time.perf_counter()
                if plan is None or self._stopped.is_set():
                    return
                if plan.step_id != step_id + 1:
                    raise PlanError(f"step {step_id + 1} was due, step {plan.step_id} came")
                step_id = plan.step_id
                hidden = None if self._first else self._next_activation(step_id)
                if self._stopped.is_set():
                    return
                begin = time.perf_counter()
                self._running = step_id, begin
                output = executor.execute(plan, hidden)
                self._running = None
                end = time.perf_counter()
                waited = 0.0 if last_end is None else max(0.0, planned - last_end)
                idle = 0.0 if last_end is None else begin - last_end
                last_end = end
                done(plan, output.hidden, StepReport(step_id, end - begin, idle, waited, output.sampled))
        except PlanError as error:
            log.error("plan refused", step=step_id, reason=str(error))
            failed(StageFailure(FailureKind.PROTOCOL, str(error), step_id))
        except Exception as error:
            log.exception("step failed", step=step_id)
            failed(StageFailure(FailureKind.EXECUTION, f"{type(error).__name__}: {error}", step_id))
        finally:
            self._running = None

    def _next_activation(self, step_id: int) -> bytes | None:
        item = self._activations.get()
        if item is None:
            return None
        got, hidden = item
        if got != step_id:
            raise PlanError(f"activations of step {step_id} were due, those of step {got} came")
        return hidden
