"""vLLM's workers as the stages of an instance: a Body (controller/runtime/body.py)."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil
import structlog

from controller.engines.vllm.engine import PendingStep, VllmEngine
from controller.engines.vllm.engine_options import EngineOptions
from controller.engines.vllm.mapping import PlanMapping, sampled_tokens
from controller.engines.vllm.stage_clock import StageClock
from controller.engines.vllm.structures import StructureMasks
from controller.runtime.stage_client import MAX_PLANS_QUEUED, StageAbout, StageAccount, StageLostError
from controller.scheduler.fabric import FabricPort
from controller.scheduler.offload import NO_OFFLOAD
from controller.scheduler.patience import StepWatch
from tidepipe_common.errors import ConfigError, IncompatibleError, InvalidRequestError
from tidepipe_common.latency.model import StepCost
from tidepipe_common.settings.defaults import STOPPED_S
from tidepipe_common.types.needs import POOLING, PROMPT_LOGPROBS, needs_of, said
from tidepipe_common.types.plan import Phase, RowError, SampledTokens, StepPlan, StepReport
from tidepipe_common.types.sampling import SamplingParams

LACKS = frozenset({PROMPT_LOGPROBS, POOLING})
RETRY_S = 2.0
"""Between attempts to start an engine that has run before."""
MEMORY_EVERY_S = 1.0

log = structlog.get_logger()


class VllmStage:
    """A worker of vLLM's, or a tensor-parallel group of them, of which this is the first."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.address = f"vllm-{index}"
        self.account = StageAccount(self.address)
        self._processes: list[psutil.Process] = []
        self._stopped_since: float | None = None

    def begin(self, about: StageAbout, layers: tuple[int, int], pids: Sequence[int]) -> None:
        """It is up. pids: of all its processes that run on this machine."""
        account = self.account
        account.about, account.layers, account.alive, account.running_step = about, layers, True, 0
        self._processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        self._stopped_since = None
        self.look(0.0)

    def look(self, now: float) -> float:
        """Read its memory; for how long one of its processes has been stopped (SIGSTOP), in seconds."""
        try:
            self.account.rss_bytes = sum(process.memory_info().rss for process in self._processes)
            stopped = any(process.status() == psutil.STATUS_STOPPED for process in self._processes)
        except psutil.Error:
            self.account.alive = False
            return 0.0
        if not stopped:
            self._stopped_since = None
            return 0.0
        if self._stopped_since is None:
            self._stopped_since = now
        return now - self._stopped_since

    def did(self, phase: Phase, compute_s: float) -> None:
        """It has computed a step."""
        if phase is Phase.PREFILL:
            self.account.prefill_busy_s += compute_s
        else:
            self.account.decode_busy_s += compute_s


@dataclass(frozen=True, slots=True)
class _Done:
    """A step that came out. Times of the core's clock."""

    plan: StepPlan
    sampled: SampledTokens
    sent: float
    ended: float


class VllmBody:
    """Starts an engine for each epoch; two threads of it wait for vLLM, whose calls block."""

    wants_history = True
    offload = NO_OFFLOAD
    kv = None

    def __init__(self, options: EngineOptions, cost: Callable[[], StepCost]) -> None:
        """cost: what steps cost, as far as is known now."""
        self.epoch = 0
        self.about: StageAbout | None = None
        self.replaced = False
        self.block_size = options.block_size
        self.most_rows = options.rows
        self.watch = StepWatch(options.stages, cost)
        self.stages: Sequence[VllmStage] = [VllmStage(index) for index in range(options.stages)]
        self._options = options
        self._engine: VllmEngine | None = None
        self._epoch_end: _Verdict = _Verdict()
        self._plans: queue.Queue[StepPlan | None] = queue.Queue()
        self._open: dict[int, Phase] = {}
        self._looked = 0.0

    @property
    def lacks(self) -> frozenset[str]:
        """Part of Body."""
        return LACKS

    def check(self, sampling: SamplingParams) -> None:
        """Part of Body: its workers sample whatever the API knows, and read nothing off prompts for us."""
        if missing := needs_of(sampling, begun=False) & LACKS:
            raise InvalidRequestError(
                f"{said(missing)} are not available with --engine vllm; leave them out, or ask an instance "
                "with TidePipe's own engine",
                min(missing),
            )

    async def bring_up(self) -> int:
        """Part of Body."""
        while True:
            await self._end_engine()
            verdict = self._epoch_end = _Verdict()
            lost = _from_thread(asyncio.get_running_loop(), verdict.give)
            try:
                engine = self._engine = await asyncio.to_thread(VllmEngine, self._options, lost)
                return self._begin(engine)
            except ConfigError:
                raise
            except Exception as error:
                # vLLM raises what it likes; after an epoch that worked it is worth trying again.
                if self.about is None:
                    raise ConfigError(
                        f"vLLM did not start: {_plain(error)}; its own words are above"
                    ) from error
                log.warning("vLLM did not start again", reason=_plain(error))
                await asyncio.sleep(RETRY_S)

    def _begin(self, engine: VllmEngine) -> int:
        layers, pids = engine.layers(), engine.pids
        self.epoch += 1
        shape, fingerprint = engine.shape(), engine.fingerprint()
        if self.about is not None and self.about.fingerprint != fingerprint:
            raise IncompatibleError("the model's files have changed; restart the controller")
        for index, stage in enumerate(self.stages):
            mine = pids[index] if index < len(pids) else []
            about = StageAbout(
                model=self._options.model,
                fingerprint=fingerprint,
                device=engine.device,
                dtype=engine.dtype,
                pid=mine[0] if mine else 0,
                shape=shape,
                epoch=self.epoch,
                fabric=FabricPort(),
            )
            stage.begin(about, layers[index], mine)
        self.about = self.stages[0].account.about
        self.block_size = engine.block_size
        self.replaced = True
        self.watch.begin([engine.device != "cpu"] * len(self.stages))
        self._open.clear()
        self._plans = queue.Queue()
        log.info(
            "vllm ready",
            epoch=self.epoch,
            layers=layers,
            kv_blocks=engine.blocks,
            block_size=engine.block_size,
        )
        return engine.blocks

    def send(self, plan: StepPlan) -> None:
        """Part of Body."""
        if len(self._open) >= MAX_PLANS_QUEUED:
            self._lose(StageLostError("vLLM takes no plans", open_steps=tuple(self._open)))
            return
        self.watch.sent(plan)
        self._open[plan.step_id] = plan.phase
        for stage in self.stages:
            stage.account.running_step = next(iter(self._open))
        self._plans.put(plan)

    def look_for_hangs(self, now: float) -> None:
        """Part of Body."""
        if now - self._looked >= MEMORY_EVERY_S:
            self._looked = now
            for stage in self.stages:
                stopped_s = stage.look(now)
                if stopped_s > STOPPED_S:
                    self._lose(StageLostError(f"a worker of vLLM's has been stopped for {stopped_s:.0f} s"))
        late = self.watch.look(now)
        if late is not None:
            self._lose(
                StageLostError(
                    f"vLLM has been at step {late.step_id} for {late.seconds:.0f} s, of which "
                    f"{late.limit_s:.0f} s would be explained by its cost",
                    late.step_id,
                    tuple(self._open),
                )
            )

    def _lose(self, error: StageLostError) -> None:
        self._epoch_end.give(error)

    async def run_epoch(self, report: Callable[[int, StepReport], None]) -> None:
        """Part of Body."""
        engine, verdict = self._engine, self._epoch_end
        assert engine is not None, "it has been brought up"
        loop, clock = asyncio.get_running_loop(), StageClock(len(self.stages))

        def done(step: _Done) -> None:
            if self._epoch_end is verdict and not verdict.given:
                try:
                    self._done(step, clock, report)
                except Exception as error:  # here is nobody who could take it
                    verdict.give(error)

        work = _Work(engine, self._plans, _from_thread(loop, done), _from_thread(loop, verdict.give))
        work.start()
        try:
            lost = await verdict.wait()
            raise StageLostError(str(lost), lost.failed_step, tuple(self._open))
        finally:
            for stage in self.stages:
                stage.account.alive = False
            verdict.close()
            # The engine first: it wakes the thread that waits for it.
            await asyncio.shield(asyncio.to_thread(self._end, engine, work))

    def _end(self, engine: VllmEngine, work: _Work) -> None:
        engine.shutdown()
        work.join()
        if self._engine is engine:
            self._engine = None

    def _done(self, step: _Done, clock: StageClock, report: Callable[[int, StepReport], None]) -> None:
        plan = step.plan
        self._open.pop(plan.step_id, None)
        running = next(iter(self._open), 0)
        last = len(self.stages) - 1
        for stage, took in zip(self.stages, clock.done(step.sent, step.ended), strict=True):
            stage.did(plan.phase, took.compute_s)
            stage.account.running_step = running
            self.watch.reported(stage.index, plan.step_id, took.compute_s)
            sampled = step.sampled if stage.index == last else None
            report(stage.index, StepReport(plan.step_id, took, sampled))

    async def _end_engine(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
            self._engine = None

    async def close(self) -> None:
        """Part of Body."""
        await self._end_engine()


class _Verdict:
    """Why an epoch ends: the first reason counts."""

    def __init__(self) -> None:
        self._reason: Exception = StageLostError("")
        self._judged = asyncio.Event()
        self._closed = False

    @property
    def given(self) -> bool:
        """True once it is known, or nobody wants to know any more."""
        return self._closed or self._judged.is_set()

    def give(self, reason: Exception | str) -> None:
        """End the epoch."""
        if not self.given:
            self._reason = StageLostError(reason) if isinstance(reason, str) else reason
            self._judged.set()

    def close(self) -> None:
        """Nothing counts from now on."""
        self._closed = True

    async def wait(self) -> StageLostError:
        """The reason, once there is one. What is no loss of stages is a defect, and raised."""
        await self._judged.wait()
        if isinstance(self._reason, StageLostError):
            return self._reason
        raise self._reason


@dataclass(frozen=True, slots=True)
class _Told:
    """A step that the workers know of. wanted: log-probabilities by sequence. errors: see SampledTokens."""

    plan: StepPlan
    wanted: dict[int, int]
    errors: tuple[RowError, ...]
    pending: PendingStep
    sent: float


class _Work:
    """The threads of an epoch: one tells vLLM of steps, one waits for their results."""

    def __init__(
        self,
        engine: VllmEngine,
        plans: queue.Queue[StepPlan | None],
        done: Callable[[_Done], None],
        lost: Callable[[StageLostError], None],
    ) -> None:
        """done, lost: may be called from any thread."""
        self._engine = engine
        self._plans = plans
        self._done = done
        self._lost = lost
        tokens_travel = engine.options.stages > 1
        self._mapping = PlanMapping(engine.longest, engine.vocab_size, tokens_travel=tokens_travel)
        self._structures = StructureMasks(engine.grammars(), engine.vocab_size)
        self._pending: queue.Queue[_Told | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._tell, "vllm-plans"), (self._collect, "vllm-results"))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the threads, once the engine has been shut down."""
        self._plans.put(None)
        for thread in self._threads:
            thread.join()

    def _tell(self) -> None:
        step_id: int | None = None
        try:
            while (plan := self._plans.get()) is not None:
                step_id = plan.step_id
                output = self._mapping.output(plan)
                wanted = self._mapping.wanted_logprobs(plan)
                sent = time.monotonic()
                # While the first stages compute there is time for masks.
                executed = self._engine.execute(output)
                masks, errors = self._structures.masks(plan)
                pending = self._engine.sample(executed, masks)
                self._pending.put(_Told(plan, wanted, errors, pending, sent))
        except Exception as error:
            self._lost(StageLostError(f"vLLM does not take step {step_id}: {_plain(error)}", step_id))
        finally:
            self._pending.put(None)

    def _collect(self) -> None:
        while (item := self._pending.get()) is not None:
            plan = item.plan
            try:
                result = item.pending.result()
                ended = time.monotonic()
                sampled = sampled_tokens(plan, item.wanted, result, item.errors)
            except Exception as error:
                self._lost(
                    StageLostError(f"vLLM failed at step {plan.step_id}: {_plain(error)}", plan.step_id)
                )
                return
            self._done(_Done(plan, sampled, item.sent, ended))


T = TypeVar("T")


def _from_thread(loop: asyncio.AbstractEventLoop, call: Callable[[T], None]) -> Callable[[T], None]:
    """The call, made on the event loop, for other threads; nothing once the loop is closed."""

    def hand_over(value: T) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(call, value)

    return hand_over


def _plain(error: BaseException) -> str:
    """The first line of what vLLM says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
