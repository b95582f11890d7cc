"""One epoch of a stage: runner, link, and the reports that go to the controller."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.link import NextStageLink, describe
from stage_worker.runner import StepRunner, WorkAccount
from tidepipe_common.types.plan import FailureKind, StageFailure, StageNews, StepPlan, StepReport

STOP_TIMEOUT_S = 60.0
"""For the step that an epoch's end finds under way, unless the controller knows better."""

log = structlog.get_logger()


class StuckError(Exception):
    """A step does not return. Nothing in the process can end it, and the device may be its own."""


class Epoch:
    """Everything that a new epoch throws away. Lives on the event loop; only the runner has a thread."""

    def __init__(
        self,
        number: int,
        spec: StageSpec,
        executor: Executor,
        next_address: str,
        max_message_bytes: int,
        account: WorkAccount,
    ) -> None:
        """account: where the steps of this epoch are counted."""
        self.number = number
        self.spec = spec
        self.executor: Executor | None = executor
        # Reports are at most a handful per step in flight, and those are bounded by the runner's queues.
        # None: look whether the epoch, or its controller, is still there.
        self.reports: asyncio.Queue[StageNews | None] = asyncio.Queue()
        self.ended = asyncio.Event()
        self._account = account
        self._loop = asyncio.get_running_loop()
        self._runner = StepRunner(executor, first=spec.first, done=self._step_done, failed=self._step_failed)
        self._link = None if spec.last else NextStageLink(next_address, number, max_message_bytes)
        self._link_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The controller is here: connect to the next stage."""
        if self._link is not None and self._link_task is None:
            self._link_task = asyncio.create_task(self._serve_link(self._link), name="link")

    def add_plan(self, plan: StepPlan) -> None:
        """A plan came; QueueOverflowError if there are absurdly many."""
        self._runner.add_plan(plan)

    def add_activation(self, step_id: int, hidden: bytes) -> None:
        """Activations came; QueueOverflowError if there are absurdly many."""
        self._runner.add_activation(step_id, hidden)

    @property
    def running(self) -> tuple[int, float]:
        """See StepRunner."""
        return self._runner.running

    async def end(self, patience_s: float = STOP_TIMEOUT_S) -> None:
        """Stop everything; returns when the compute thread has left its step. StuckError: it does not."""
        self.ended.set()
        if self._link_task is not None:
            self._link_task.cancel()
            await asyncio.gather(self._link_task, return_exceptions=True)
        # What computed is given up here: a report that is still under way may hold the epoch for longer.
        executor, self.executor = self.executor, None
        if executor is not None:
            # Off the event loop: NCCL takes its time to give up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await asyncio.to_thread(executor.close)
        if not await asyncio.to_thread(self._runner.stop, patience_s):
            step_id, seconds = self._runner.running
            raise StuckError(f"step {step_id} of epoch {self.number} has not returned for {seconds:.0f} s")

    async def _serve_link(self, link: NextStageLink) -> None:
        try:
            await link.run()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._fail(StageFailure(FailureKind.LINK, f"link to the next stage: {describe(error)}"))

    # -- on the compute thread ----------------------------------------------------------------------

    def _step_done(self, plan: StepPlan, hidden: bytes | memoryview | None, report: StepReport) -> None:
        self._loop.call_soon_threadsafe(self._take, plan, hidden, report)

    def _step_failed(self, failure: StageFailure) -> None:
        self._loop.call_soon_threadsafe(self._fail, failure)

    # -- on the event loop --------------------------------------------------------------------------

    def _take(self, plan: StepPlan, hidden: bytes | memoryview | None, report: StepReport) -> None:
        if self.ended.is_set():
            return
        self._account.count(plan, hidden, report)
        if self._link is not None and hidden is not None:
            try:
                self._link.send(plan.step_id, hidden, plan.tokens)
            except asyncio.QueueFull:
                detail = "the next stage takes no activations"
                self._fail(StageFailure(FailureKind.LINK, detail, plan.step_id))
                return
        self.reports.put_nowait(report)

    def _fail(self, failure: StageFailure) -> None:
        if self.ended.is_set():
            return
        self._account.failures += 1
        log.warning("epoch failed", epoch=self.number, detail=failure.detail)
        self.reports.put_nowait(failure)
