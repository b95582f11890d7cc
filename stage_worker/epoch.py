"""One epoch of a stage: the compute thread, the link to the next stage, and what goes to the controller."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import structlog

from stage_worker.executors.protocol import Executor, OffloadError, PlanError, StageSpec
from stage_worker.hand_over import KvTransfers
from stage_worker.link import MAX_QUEUED, NextStageLink, describe
from stage_worker.sequence_spans import SequenceSpans
from tidepipe_common.errors import IncompatibleError
from tidepipe_common.notifier import Notifier
from tidepipe_common.types.plan import (
    FailureKind,
    Phase,
    StageFailure,
    StageNews,
    StageTimes,
    StepPlan,
    StepReport,
)

STOP_TIMEOUT_S = 60.0
"""For the step that an epoch's end finds under way, unless the controller knows better."""

MAX_WAITING_BYTES = 1 << 29
"""Of activations that wait for their steps; the stage before then waits with the next ones."""
MAX_REPORTS = 8192
"""That wait for a controller which does not take them; a fetch of blocks has one as well."""

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
        account.busy_s += report.own.compute_s
        account.plan_wait_s += report.own.plan_wait_s
        account.bubble_s += report.own.idle_s - report.own.plan_wait_s
        if hidden is not None:
            self.activation_bytes += hidden.nbytes if isinstance(hidden, memoryview) else len(hidden)


class _Activations(NamedTuple):
    """What came from the stage before, and when. before: see StepReport."""

    at: float
    step_id: int
    hidden: bytes | None
    before: tuple[StageTimes, ...] = ()


_NOTHING = _Activations(0.0, 0, None)
"""What a first stage waits for."""


class StuckError(Exception):
    """A step does not return. Nothing in the process can end it, and the device may be its own."""


class QueueOverflowError(Exception):
    """More steps in flight than a correct controller ever has."""


class Reports(asyncio.Queue["StageNews | None"]):
    """News of one epoch for its controller. None: look whether the epoch, or the controller, is still there.

    They are a handful per step in flight, and those are bounded by the runner's queues: a controller that
    takes none ends the epoch.
    """

    def __init__(self, ended: asyncio.Event, computed: Notifier) -> None:
        """Both the epoch's; who waits for room in it hears of its end as of a step."""
        super().__init__()
        self._over = ended
        self._computed = computed

    def tell(self, news: StageNews) -> None:
        """Queue news."""
        if self.qsize() < MAX_REPORTS:
            self.put_nowait(news)
        elif not self._over.is_set():
            log.warning("epoch ends: its controller takes no reports", waiting=MAX_REPORTS)
            self._over.set()
            self._computed.notify_all()


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
        spans: SequenceSpans | None = None,
        *,
        reports_go_along: bool = False,
    ) -> None:
        """account: where the steps of this epoch are counted. spans: of its sequences. reports_go_along: what
        its steps took goes to the next stage with their activations, and only from the last one to the
        controller."""
        self.number = number
        self.done_step = 0
        self._waiting: deque[int] = deque()
        self._waiting_bytes = 0
        self._computed = Notifier()
        self._along = reports_go_along and not spec.last
        self.spec = spec
        self.executor: Executor | None = executor
        self.ended = asyncio.Event()
        self.reports = Reports(self.ended, self._computed)
        self._callers: set[str] = set()
        self._account = account
        self._spans = spans or SequenceSpans()
        self._loop = asyncio.get_running_loop()
        self._runner = StepRunner(executor, first=spec.first, done=self._step_done, failed=self._step_failed)
        self._link = None if spec.last else NextStageLink(next_address, number, max_message_bytes)
        self._link_task: asyncio.Task[None] | None = None
        self.transfers = KvTransfers(
            number,
            (spec.layer_begin, spec.layer_end),
            executor.kv,
            executor.kv_blocks,
            max_message_bytes,
            self.reports.tell,
        )

    def take(self, caller: str) -> Callable[[], None]:
        """Be the one caller of that kind, until what is returned is called. IncompatibleError: somebody is.

        Two would take each other's reports, or mix their activations.
        """
        if caller in self._callers:
            raise IncompatibleError(f"epoch {self.number} has its {caller} already")
        self._callers.add(caller)
        return lambda: self._callers.discard(caller)

    def start(self) -> None:
        """The controller is here: connect to the next stage."""
        if self._link is not None and self._link_task is None:
            self._link_task = asyncio.create_task(self._serve_link(self._link), name="link")

    def add_plan(self, plan: StepPlan) -> None:
        """A plan came; QueueOverflowError if there are absurdly many."""
        self._runner.add_plan(plan)

    async def room(self, nbytes: int) -> None:
        """Wait until activations of so many bytes may wait here, or the epoch ends. One step's always may."""
        while self._waiting and self._waiting_bytes + nbytes > MAX_WAITING_BYTES:
            computed = self._computed.next()
            if self.ended.is_set():
                return
            await computed.wait()

    def add_activation(self, step_id: int, hidden: bytes, before: tuple[StageTimes, ...] = ()) -> None:
        """Activations came; QueueOverflowError if there are absurdly many. before: see StepReport."""
        self._runner.add_activation(step_id, hidden, before)
        self._waiting.append(len(hidden))
        self._waiting_bytes += len(hidden)

    @property
    def running(self) -> tuple[int, float]:
        """See StepRunner."""
        return self._runner.running

    async def end(self, patience_s: float = STOP_TIMEOUT_S) -> None:
        """Stop everything; returns when the compute thread has left its step. StuckError: it does not."""
        self.ended.set()
        self._computed.notify_all()
        self._spans.close()
        await self.transfers.close()
        if self._link_task is not None:
            self._link_task.cancel()
            await asyncio.gather(self._link_task, return_exceptions=True)
        # What computed is given up here: a report that is still under way may hold the epoch for longer.
        executor, self.executor = self.executor, None
        if executor is not None:
            # Off the event loop: NCCL takes its time to give up.
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await asyncio.to_thread(executor.close)
            except TimeoutError:
                log.warning("the executor does not give its neighbours up", epoch=self.number)
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
        if self._waiting:
            self._waiting_bytes -= self._waiting.popleft()
            self._computed.notify_all()
        self.done_step = plan.step_id
        self.transfers.step_done(plan.step_id)
        self._spans.note(plan, report)
        # A stage before this one that is of an older version told of itself: then all do.
        along = self._along and len(report.before) == self.spec.index
        if self._link is not None and hidden is not None:
            try:
                self._link.send(plan.step_id, hidden, plan.tokens, report.times if along else ())
            except asyncio.QueueFull:
                detail = "the next stage takes no activations"
                self._fail(StageFailure(FailureKind.LINK, detail, plan.step_id))
                return
        if not along:
            self.reports.tell(report)

    def _fail(self, failure: StageFailure) -> None:
        if self.ended.is_set():
            return
        self._account.failures += 1
        log.warning("epoch failed", epoch=self.number, detail=failure.detail)
        self.reports.tell(failure)


class StepRunner:
    """Runs the steps of one epoch on a thread of its own, so that torch never blocks the event loop.

    On that thread `done` is called for each step, or `failed` and then nothing more.
    """

    def __init__(
        self, executor: Executor, *, first: bool, done: Done, failed: Callable[[StageFailure], None]
    ) -> None:
        self._first = first
        # Each with when it came.
        self._plans: queue.Queue[tuple[float, StepPlan] | None] = queue.Queue(MAX_QUEUED)
        self._activations: queue.Queue[_Activations | None] = queue.Queue(MAX_QUEUED)
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
        self._put(self._plans, (time.perf_counter(), plan), "plans")

    def add_activation(self, step_id: int, hidden: bytes, before: tuple[StageTimes, ...]) -> None:
        """Activations came from the stage before, and what the stages until there took."""
        item = _Activations(time.perf_counter(), step_id, hidden, before)
        self._put(self._activations, item, "activations")

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
                item = self._plans.get()
                if item is None or self._stopped.is_set():
                    return
                planned, plan = item
                if plan.step_id != step_id + 1:
                    raise PlanError(f"step {step_id + 1} was due, step {plan.step_id} came")
                step_id = plan.step_id
                came = _NOTHING if self._first else self._next_activation(step_id)
                if came is None or self._stopped.is_set():
                    return
                begin = time.perf_counter()
                self._running = step_id, begin
                output = executor.execute(plan, came.hidden)
                self._running = None
                end = time.perf_counter()
                if output.seconds is not None:
                    begin = end - output.seconds
                idle = 0.0 if last_end is None else max(0.0, begin - last_end)
                waited = [
                    0.0 if last_end is None else min(idle, max(0.0, there - last_end))
                    for there in (planned, max(planned, came.at))
                ]
                last_end = end
                own = StageTimes(end - begin, idle, *waited)
                done(plan, output.hidden, StepReport(step_id, own, output.sampled, came.before))
        except PlanError as error:
            log.error("plan refused", step=step_id, reason=str(error))
            failed(StageFailure(FailureKind.PROTOCOL, str(error), step_id))
        except OffloadError as error:
            log.warning("the second tier of KV blocks ends", reason=str(error))
            # Without a step: no request is to blame.
            failed(StageFailure(FailureKind.EXECUTION, f"the second tier of KV blocks ends: {error}"))
        except Exception as error:
            log.exception("step failed", step=step_id)
            failed(StageFailure(FailureKind.EXECUTION, f"{type(error).__name__}: {error}", step_id))
        finally:
            self._running = None

    def _next_activation(self, step_id: int) -> _Activations | None:
        item = self._activations.get()
        if item is not None and item.step_id != step_id:
            raise PlanError(f"activations of step {step_id} were due, those of step {item.step_id} came")
        return item
