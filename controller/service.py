"""`python -m controller`: the brain of one instance."""

from __future__ import annotations

import asyncio
import gc
import uuid

from controller.api.servicer import ControllerServicer, TimelineServicer, start_serving
from controller.runtime.journal import Journal, open_journal
from controller.runtime.live import LiveInstance
from controller.runtime.pipeline import Pipeline, PipelineConfig
from controller.runtime.scheduler_spec import SchedulerSpec
from controller.runtime.stage_client import StageAbout
from controller.scheduler.policies.catalog import (
    Knob,
    Knobs,
    make_setup,
    parse_knobs,
    step_knob,
)
from controller.scheduler.scheduler import Scheduler
from controller.telemetry import ControllerMetrics
from tidepipe_common.latency.correction import LearningCost
from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.rpc.lifecycle import Lifecycle, run_service, settings_or_exit
from tidepipe_common.rpc.registration import Registration
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.settings.defaults import MAX_STEP_TOKENS
from tidepipe_common.telemetry.listener import serve_metrics
from tidepipe_common.telemetry.telemetry import Telemetry
from tidepipe_common.types.token_mix import TokenMix

DRAIN_S = 10.0
GC_YOUNG = 20_000
GC_OLD = 50
"""Allocations that survive until the young are looked through, and rounds of that until all are: thousands of
sequences live long, and looking through them takes 20 ms and finds nothing. Reference counts free what a
step leaves behind; cycles come from failed calls, which are few."""
LIKELY_DEVICE = {"cpu": "cpu", "cuda": "l20"}
"""Whose links and data sheet fill in what a profile leaves open."""


def _knobs(settings: ControllerSettings) -> Knobs:
    """What was chosen of the policy's settings, by name or by the flags that many policies share."""
    name = settings.policy
    flags: dict[str, Knob] = {}
    if settings.prefill_tokens:
        flags[step_knob(name)] = settings.prefill_tokens
    if settings.max_running:
        flags["max_running"] = settings.max_running
    if settings.reserve is not None:
        flags["reserve"] = settings.reserve
    knobs = {**flags, **parse_knobs(settings.policy_settings, name)}
    make_setup(name, {knob: value for knob, value in knobs.items() if knob != "switching"})
    return knobs


def scheduler_spec_of(
    settings: ControllerSettings, about: StageAbout, split: tuple[int, ...]
) -> SchedulerSpec:
    """The instance that these options describe, on such stages."""
    device = about.device.partition(":")[0]
    return SchedulerSpec(
        policy=settings.policy,
        shape=about.shape,
        split=split,
        device=settings.hardware or LIKELY_DEVICE.get(device, "l20"),
        profile=read_profile(settings.profile) if settings.profile else None,
        # One core differs from another by a factor, which reported times correct; GPUs differ in kind.
        modelled=settings.hardware is not None or device == "cpu",
        block_size=settings.block_size,
        microbatches=settings.microbatches,
        max_sequences=settings.max_sequences,
        knobs=_knobs(settings),
        prefix_caching=settings.prefix_caching == "on",
    )


async def serve(settings: ControllerSettings, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop."""
    _knobs(settings)
    incarnation = uuid.uuid4().hex
    config = PipelineConfig(
        stage_addresses=settings.stage_addresses,
        block_size=settings.block_size,
        kv_blocks=settings.kv_blocks,
        max_step_tokens=MAX_STEP_TOKENS,
        layer_split=settings.layers,
        token_mix=TokenMix.parse(settings.token_mix),
    )

    journal_file = open_journal(settings.journal, settings.instance_id) if settings.journal else None
    journal = Journal(journal_file) if journal_file else None
    cost: LearningCost = LearnedCost()
    pipeline = Pipeline(config, incarnation, lambda: cost)

    def make_scheduler(about: StageAbout) -> Scheduler:
        nonlocal cost
        ranges = [stage.account.layers for stage in pipeline.stages]
        spec = scheduler_spec_of(settings, about, tuple(end - begin for begin, end in ranges))
        if journal is not None:
            journal.begin(spec)
        scheduler, cost = spec.build()
        return scheduler

    telemetry = Telemetry()
    server = RpcServer(settings.listen, telemetry=telemetry)
    ready = asyncio.Event()
    health: asyncio.Queue[bool] = asyncio.Queue()

    def on_serving(serving: bool) -> None:
        health.put_nowait(serving)
        if serving:
            ready.set()

    async def report_health() -> None:
        while True:
            await server.set_serving(await health.get())

    metrics = ControllerMetrics(telemetry, settings.instance_id)
    instance = LiveInstance(pipeline, make_scheduler, settings.predictor, on_serving, journal, metrics.note)
    metrics.export(instance)
    address = await start_serving(
        server,
        ControllerServicer(instance, settings.instance_id, incarnation, lambda: cost),
        TimelineServicer(instance, settings.instance_id),
    )
    registration: Registration | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(instance.run(), name="instance"),
            group.create_task(report_health(), name="health"),
        ]
        if await _either(ready, lifecycle.stopping):
            if settings.router:
                assert pipeline.about is not None
                registration = Registration(
                    settings.router,
                    instance_id=settings.instance_id,
                    controller_address=settings.advertise or address,
                    model=pipeline.about.model,
                    incarnation=incarnation,
                )
                tasks.append(group.create_task(registration.run(), name="registration"))
            async with serve_metrics(telemetry, settings.listen, settings.metrics_port) as metrics_address:
                tune_gc()
                lifecycle.announce_ready(address, metrics_address)
                await lifecycle.stopping.wait()
        if registration:
            tasks.pop().cancel()
            await registration.withdraw()
        await instance.drain(DRAIN_S)
        for task in tasks:
            task.cancel()
    if registration:
        await registration.close()
    await pipeline.close()
    if journal_file:
        journal_file.close()
    await server.stop(grace_s=1.0)


def tune_gc() -> None:
    """Keep Python's cyclic garbage collector from stopping the process between two steps.

    What is there by now (modules, settings) stays for good and is never looked through again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG, GC_OLD, GC_OLD)


async def _either(ready: asyncio.Event, stopping: asyncio.Event) -> bool:
    """Wait for one of the two; True if it is `ready`."""
    waits = [asyncio.create_task(ready.wait()), asyncio.create_task(stopping.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return ready.is_set() and not stopping.is_set()


def main() -> int:
    """Entry point; the exit code."""
    settings = settings_or_exit(ControllerSettings)
    return run_service(
        "controller",
        lambda life: serve(settings, life),
        log_level=settings.log_level,
        credentials=settings.credentials,
    )
