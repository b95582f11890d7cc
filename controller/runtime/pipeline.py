"""The stages of one instance as a whole: brought up together for an epoch, lost together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from controller.runtime.kv_port import KvPort
from controller.runtime.stage_client import (
    NextStageLostError,
    StageAbout,
    StageClient,
    StageLostError,
    StageSetup,
    common_about,
)
from controller.scheduler.fabric import obstacles
from controller.scheduler.offload import OffloadCapacity
from controller.scheduler.patience import StepWatch
from controller.scheduler.split import stage_layers
from tidepipe_common.codec.plan import WirePlan
from tidepipe_common.errors import IncompatibleError, UnavailableError
from tidepipe_common.exception_groups import leaves
from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.latency.model import StepCost
from tidepipe_common.types.plan import StepPlan, StepReport
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.token_mix import TokenMix

RETRY_S = 0.3
REMIND_S = 1800.0

Answer = TypeVar("Answer")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Settings of one pipeline.

    token_mix: to split the layers by.
    layer_split: layers per stage instead.
    kv_blocks: per stage; 0 means as many as the memory budget of the smallest stage holds.
    """

    stage_addresses: tuple[str, ...]
    block_size: int
    kv_blocks: int
    max_step_tokens: int
    token_mix: TokenMix
    layer_split: tuple[int, ...] = ()


class Pipeline:
    """Brings the stages up for one epoch after the other: the Body of an instance with stage workers."""

    most_rows = 0
    wants_history = False

    def __init__(
        self,
        config: PipelineConfig,
        incarnation: str,
        cost: Callable[[], StepCost] = LearnedCost,
    ) -> None:
        """cost: what steps cost, as far as is known now; without it steps are judged by those before them."""
        self.config = config
        self.epoch = 0
        self.about: StageAbout | None = None
        count = len(config.stage_addresses)
        self.watch = StepWatch(count, cost)
        self.stages = [StageClient(address, i, count) for i, address in enumerate(config.stage_addresses)]
        for one in self.stages[:-1]:  # the last one's results are waited for
            one.on_done = self.watch.passed
        self.kv = KvPort(self.stages, config.block_size, self._lose)
        self._incarnation = incarnation
        self._verdict: StageLostError | None = None
        self._judged = asyncio.Event()
        self.replaced = False
        """True if a stage of this epoch is another process than in the one before."""

    @property
    def block_size(self) -> int:
        """Part of Body."""
        return self.config.block_size

    @property
    def lacks(self) -> frozenset[str]:
        """Part of Body."""
        return frozenset()

    def check(self, sampling: SamplingParams) -> None:
        """Part of Body: its stages sample whatever the API knows."""

    @property
    def offload(self) -> OffloadCapacity:
        """Of the second tier in this epoch, as far as all stages have it."""
        each = [stage.account.offload for stage in self.stages]
        return OffloadCapacity(
            min(one.slots for one in each),
            max(one.block_s for one in each),
            min(one.step_blocks for one in each),
        )

    async def bring_up(self) -> int:
        """Configure all stages for a new epoch; KV blocks that every stage has.

        Waits for stages that do not answer yet. IncompatibleError or ConfigError if they never will fit.
        """
        told, since = "", -REMIND_S
        while True:
            try:
                return await self._configure()
            except UnavailableError as error:
                now = time.monotonic()
                # A cluster may wait for days: what is no news is said twice an hour.
                if str(error) != told or now - since >= REMIND_S:
                    told, since = str(error), now
                    log.info("waiting for stages", reason=told)
                await asyncio.sleep(RETRY_S)

    async def _configure(self) -> int:
        abouts = await _together(stage.describe() for stage in self.stages)
        about = common_about(self.stages, abouts)
        if self.about is not None and self.about.fingerprint != about.fingerprint:
            raise IncompatibleError("the stages came back with another model; restart the controller")
        if self.about is not None and set(self.about.adapters) != set(about.adapters):
            raise IncompatibleError("the stages came back with other adapters; restart the controller")
        self.about = about
        self.epoch = max(self.epoch, *(one.epoch for one in abouts)) + 1
        ranges = stage_layers(about.shape, len(self.stages), self.config.token_mix, self.config.layer_split)
        following = [*self.config.stage_addresses[1:], ""]
        ways = self._ways(abouts)
        # A name for each meeting, in this epoch only.
        names = [f"{self._incarnation}/{self.epoch}/{i}" if way else "" for i, way in enumerate(ways)]
        blocks = await _together(
            stage.configure(
                StageSetup(
                    epoch=self.epoch,
                    incarnation=self._incarnation,
                    model_fingerprint=about.fingerprint,
                    layers=layers,
                    block_size=self.config.block_size,
                    kv_blocks=self.config.kv_blocks,
                    max_step_tokens=self.config.max_step_tokens,
                    next_address=next_address,
                    fabric_before=before,
                    fabric_after=after,
                    reports_go_along=all(one.reports_go_along for one in abouts),
                )
            )
            for stage, layers, next_address, before, after in zip(
                self.stages, ranges, following, ["", *names], [*names, ""], strict=True
            )
        )
        self._verdict = None
        self._judged.clear()
        self.kv.begin_epoch()
        fresh = [stage.begin_epoch() for stage in self.stages]
        self.replaced = any(fresh)
        compiles = [about.device.startswith("cuda") for about in abouts]
        self.watch.begin([new and there for new, there in zip(fresh, compiles, strict=True)])
        log.info("stages ready", epoch=self.epoch, layers=ranges, kv_blocks=blocks, by_fabric=sum(ways))
        return min(blocks)

    def _ways(self, abouts: list[StageAbout]) -> list[bool]:
        """For each stage but the last: do activations go to the next one by fabric? Says why if not."""
        ports = [one.fabric for one in abouts]
        reasons = obstacles(ports)
        for index, reason in enumerate(reasons):
            if reason and ports[index].name:
                log.warning(
                    "activations go by RPC, not by fabric",
                    stages=[stage.address for stage in self.stages[index : index + 2]],
                    reason=reason,
                )
        return [not reason for reason in reasons]

    def send(self, plan: StepPlan) -> None:
        """Send a plan to all stages at once. If one takes no plans any more, the epoch ends."""
        self.watch.sent(plan)
        told = WirePlan(plan)
        for stage in self.stages:
            try:
                stage.send(told)
            except asyncio.QueueFull:
                self._lose(StageLostError(f"stage {stage.index} at {stage.address} takes no plans"))

    def look_for_hangs(self, now: float) -> None:
        """End the epoch if a stage has been at a step for longer than any slowness explains."""
        late = self.watch.look(now)
        if late is None or self._judged.is_set():
            return
        stage = self.stages[late.stage]
        computing = stage.account.running_step == late.step_id
        what = "has been at" if computing else "has not begun, or not reported,"
        detail = (
            f"stage {stage.index} at {stage.address} {what} step {late.step_id} for {late.seconds:.0f} s, "
            f"of which {late.limit_s:.0f} s would be explained by its cost"
        )
        stage.hung = True
        self._lose(StageLostError(detail, late.step_id if computing else None, stage.open_steps))

    def _lose(self, error: StageLostError) -> None:
        if self._verdict is None:
            self._verdict = error
            self._judged.set()

    async def run_epoch(self, report: Callable[[int, StepReport], None]) -> None:
        """Serve the epoch until cancelled; StageLostError when any stage is lost."""
        lost: list[StageLostError] = []
        try:
            async with asyncio.TaskGroup() as group:
                for stage in self.stages:
                    group.create_task(self._run_stage(stage, report), name=f"stage-{stage.index}")
                group.create_task(self._watch_verdict(), name="verdict")
        except* StageLostError as group:
            lost = leaves(group)
        if lost:
            steps = [error.failed_step for error in lost if error.failed_step is not None]
            unreported = sorted({step for error in lost for step in error.open_steps})
            raise StageLostError("; ".join(map(str, lost)), min(steps, default=None), tuple(unreported))

    async def _run_stage(self, stage: StageClient, report: Callable[[int, StepReport], None]) -> None:
        def watched(index: int, done: StepReport) -> None:
            for earlier, times in zip(self.stages, done.before, strict=False):
                earlier.reported(done.step_id, times)
                self.watch.reported(earlier.index, done.step_id, times.compute_s)
            self.watch.reported(index, done.step_id, done.own.compute_s)
            report(index, done)

        try:
            await stage.run(self.epoch, watched)
        except NextStageLostError as error:
            # Often the first news of the death of the one behind it.
            raise StageLostError(str(error), open_steps=self.stages[stage.index + 1].open_steps) from error

    async def _watch_verdict(self) -> None:
        await self._judged.wait()
        assert self._verdict is not None
        raise self._verdict

    async def close(self) -> None:
        """Give all channels back."""
        for stage in self.stages:
            await stage.close()


async def _together(calls: Iterable[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """The answers in order. If one call fails, its error: the others are given up, so that none of them comes
    back while a later try is under way."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failed:
        raise leaves(failed)[0] from failed
    return [task.result() for task in tasks]
