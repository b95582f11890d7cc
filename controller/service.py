"""`python -m controller`: the brain of one instance."""

from __future__ import annotations

import argparse
import asyncio
import gc
import uuid
from pathlib import Path

from controller.api.servicer import ControllerServicer, TimelineServicer, start_serving
from controller.runtime.journal import Journal, open_journal
from controller.runtime.live import LiveInstance
from controller.runtime.pipeline import Pipeline, PipelineConfig
from controller.runtime.scheduler_spec import SchedulerSpec
from controller.runtime.stage_client import StageAbout
from controller.scheduler.policies.catalog import (
    LIVE_POLICIES,
    MAX_STEP_TOKENS,
    Knob,
    Knobs,
    make_setup,
    parse_knobs,
    step_knob,
)
from controller.scheduler.scheduler import Scheduler
from controller.scheduler.state import BLOCK_SIZE
from controller.telemetry import ControllerMetrics
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.correction import LearningCost
from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.rpc.lifecycle import Lifecycle, run_service
from tidepipe_common.rpc.registration import Registration
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.security.credentials import add_security_options, from_options
from tidepipe_common.telemetry.listener import add_metrics_option, serve_metrics
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


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line of the service."""
    parser = argparse.ArgumentParser("python -m controller", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT; port 0 picks a free one")
    parser.add_argument("--advertise", default="", help="HOST:PORT for the router; default: --listen")
    parser.add_argument("--instance-id", default="instance-0", help="name of the instance")
    parser.add_argument("--stages", required=True, help="HOST:PORT of each stage worker, first to last")
    parser.add_argument("--router", default=None, help="HOST:PORT of the router to register at")
    parser.add_argument("--predictor", default=None, help="HOST:PORT of the length predictor")
    parser.add_argument("--policy", default="auto", help=", ".join(LIVE_POLICIES))
    parser.add_argument("--profile", type=Path, default=None, help="CSV of tokens, ms of the whole model")
    parser.add_argument("--hardware", default=None, help="device to model: l20, a100, a800 or h100")
    parser.add_argument("--block-size", type=int, default=BLOCK_SIZE, help="tokens per KV block")
    parser.add_argument("--kv-blocks", type=int, default=0, help="per stage; 0: from the memory budget")
    parser.add_argument("--layer-split", default="", help="layers per stage, such as 16,14")
    parser.add_argument(
        "--token-mix",
        default=str(TokenMix()),
        help="prompt and output tokens of a typical request, to split layers by",
    )
    parser.add_argument("--prefill-tokens", type=int, default=0, help="per step with prompts; 0: by policy")
    parser.add_argument("--max-sequences", type=int, default=0, help="running and waiting; 0: by policy")
    parser.add_argument("--max-running", type=int, default=0, help="sequences with KV blocks; 0: any number")
    parser.add_argument(
        "--reserve",
        type=float,
        default=None,
        help="share of the KV blocks that the forecast peak leaves free at least; below 0 overcommits memory",
    )
    parser.add_argument("--policy-settings", default="", help="of the policy, NAME=VALUE,..")
    parser.add_argument("--microbatches", type=int, default=0, help="always so many; 0: as the policy likes")
    parser.add_argument(
        "--journal", type=Path, default=None, help="write every event to this .jsonl file, or folder"
    )
    add_metrics_option(parser)
    add_security_options(parser)
    parser.add_argument("--log-level", default="info")
    return parser.parse_args(arguments)


def _knobs(options: argparse.Namespace) -> Knobs:
    """What was chosen of the policy's settings, by name or by the flags that many policies share."""
    name = options.policy
    if name not in LIVE_POLICIES:
        raise ConfigError(f"unknown policy {name!r}; known: {', '.join(LIVE_POLICIES)}")
    flags: dict[str, Knob] = {}
    if options.prefill_tokens:
        flags[step_knob(name)] = options.prefill_tokens
    if options.max_running:
        flags["max_running"] = options.max_running
    if options.reserve is not None:
        flags["reserve"] = options.reserve
    knobs = {**flags, **parse_knobs(options.policy_settings, name)}
    make_setup(name, {knob: value for knob, value in knobs.items() if knob != "switching"})
    return knobs


def scheduler_spec_of(
    options: argparse.Namespace, about: StageAbout, split: tuple[int, ...]
) -> SchedulerSpec:
    """The instance that these options describe, on such stages."""
    device = about.device.partition(":")[0]
    return SchedulerSpec(
        policy=options.policy,
        shape=about.shape,
        split=split,
        device=options.hardware or LIKELY_DEVICE.get(device, "l20"),
        profile=read_profile(options.profile) if options.profile else None,
        # One core differs from another by a factor, which reported times correct; GPUs differ in kind.
        modelled=options.hardware is not None or device == "cpu",
        block_size=options.block_size,
        microbatches=options.microbatches,
        max_sequences=options.max_sequences,
        knobs=_knobs(options),
    )


def _layer_split(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise ConfigError(f"--layer-split must be numbers such as 16,14; got {text!r}") from None


def _check(options: argparse.Namespace) -> None:
    for name, low, high in (
        ("block_size", 1, 1024),
        ("kv_blocks", 0, 2**31),
        ("prefill_tokens", 0, MAX_STEP_TOKENS),
        ("max_sequences", 0, 2**20),
        ("max_running", 0, MAX_STEP_TOKENS),
        ("microbatches", 0, 32),
        ("reserve", -100.0, 0.9),
    ):
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} must be in [{low}, {high}], got {value}")


async def serve(options: argparse.Namespace, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop."""
    _check(options)
    _knobs(options)
    incarnation = uuid.uuid4().hex
    config = PipelineConfig(
        stage_addresses=tuple(part for part in options.stages.split(",") if part),
        block_size=options.block_size,
        kv_blocks=options.kv_blocks,
        max_step_tokens=MAX_STEP_TOKENS,
        layer_split=_layer_split(options.layer_split),
        token_mix=TokenMix.parse(options.token_mix),
    )

    journal_file = open_journal(options.journal, options.instance_id) if options.journal else None
    journal = Journal(journal_file) if journal_file else None
    cost: LearningCost = LearnedCost()
    pipeline = Pipeline(config, incarnation, lambda: cost)

    def make_scheduler(about: StageAbout) -> Scheduler:
        nonlocal cost
        ranges = [stage.account.layers for stage in pipeline.stages]
        spec = scheduler_spec_of(options, about, tuple(end - begin for begin, end in ranges))
        if journal is not None:
            journal.begin(spec)
        scheduler, cost = spec.build()
        return scheduler

    telemetry = Telemetry()
    server = RpcServer(options.listen, telemetry=telemetry)
    ready = asyncio.Event()
    health: asyncio.Queue[bool] = asyncio.Queue()

    def on_serving(serving: bool) -> None:
        health.put_nowait(serving)
        if serving:
            ready.set()

    async def report_health() -> None:
        while True:
            await server.set_serving(await health.get())

    metrics = ControllerMetrics(telemetry, options.instance_id)
    instance = LiveInstance(pipeline, make_scheduler, options.predictor, on_serving, journal, metrics.note)
    metrics.export(instance)
    address = await start_serving(
        server,
        ControllerServicer(instance, options.instance_id, incarnation, lambda: cost),
        TimelineServicer(instance, options.instance_id),
    )
    registration: Registration | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(instance.run(), name="instance"),
            group.create_task(report_health(), name="health"),
        ]
        if await _either(ready, lifecycle.stopping):
            if options.router:
                assert pipeline.about is not None
                registration = Registration(
                    options.router,
                    instance_id=options.instance_id,
                    controller_address=options.advertise or address,
                    model=pipeline.about.model,
                    incarnation=incarnation,
                )
                tasks.append(group.create_task(registration.run(), name="registration"))
            async with serve_metrics(telemetry, options.listen, options.metrics_port) as metrics_address:
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
    options = parse()
    return run_service(
        "controller",
        lambda life: serve(options, life),
        log_level=options.log_level,
        credentials=from_options(options),
    )
