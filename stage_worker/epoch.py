"""One epoch of a stage: runner, link, and the reports that go to the controller."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from stage_worker.account import WorkAccount
from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.link import NextStageLink, describe
from stage_worker.runner import StepFailure, StepOutcome, StepRunner
from tidepipe.v1 import stage_pb2
from tidepipe_common.codec.sampling import logprobs_to_wire
from tidepipe_common.types.plan import StepPlan

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
        self.reports: asyncio.Queue[stage_pb2.RunResponse | None] = asyncio.Queue()
        self.ended = asyncio.Event()
        self._account = account
        self._loop = asyncio.get_running_loop()
        self._runner = StepRunner(executor, first=spec.first, done=self._from_runner)
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
            self._fail(stage_pb2.StageFailure.KIND_LINK, f"link to the next stage: {describe(error)}", 0)

    def _from_runner(self, outcome: StepOutcome | StepFailure) -> None:
        self._loop.call_soon_threadsafe(self._take, outcome)

    def _take(self, outcome: StepOutcome | StepFailure) -> None:
        if self.ended.is_set():
            return
        if isinstance(outcome, StepFailure):
            kind = (
                stage_pb2.StageFailure.KIND_PROTOCOL
                if outcome.protocol
                else stage_pb2.StageFailure.KIND_EXECUTION
            )
            self._fail(kind, outcome.detail, outcome.step_id)
            return
        self._account.count(outcome)
        if self._link is not None and outcome.hidden is not None:
            try:
                self._link.send(outcome.step_id, outcome.hidden, outcome.tokens)
            except asyncio.QueueFull:
                self._fail(
                    stage_pb2.StageFailure.KIND_LINK, "the next stage takes no activations", outcome.step_id
                )
                return
        report = stage_pb2.StepReport(
            step_id=outcome.step_id,
            compute_s=outcome.times.compute,
            idle_s=outcome.times.idle,
            plan_wait_s=outcome.times.plan_wait,
        )
        if outcome.sampled is not None:
            report.token_ids.extend(outcome.sampled.token_ids)
            report.logprobs.extend(logprobs_to_wire(outcome.sampled.logprobs))
            for error in outcome.sampled.errors:
                report.errors.add(sequence_key=error.key, detail=error.detail, fault=error.fault)
        self.reports.put_nowait(stage_pb2.RunResponse(step=report))

    def _fail(self, kind: stage_pb2.StageFailure.Kind.ValueType, detail: str, step_id: int) -> None:
        self._account.failures += 1
        log.warning("epoch failed", epoch=self.number, detail=detail)
        failure = stage_pb2.StageFailure(kind=kind, detail=detail, step_id=step_id)
        self.reports.put_nowait(stage_pb2.RunResponse(failure=failure))
