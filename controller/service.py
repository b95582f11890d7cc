"""`python -m controller`: the brain of one instance."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

from controller.api.sequences import start_serving
from controller.api.servicer import ControllerServicer, TimelineServicer
from controller.runtime.body import Body
from controller.runtime.journal import Journal, open_journal
from controller.runtime.live import LiveInstance
from controller.runtime.pipeline import Pipeline, PipelineConfig
from controller.runtime.scheduler_spec import SchedulerSpec
from controller.runtime.sequence_spans import SequenceSpans
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
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.rpc.lifecycle import Lifecycle, run_service, settings_or_exit
from tidepipe_common.rpc.registration import Registration
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.settings.defaults import MAX_STEP_TOKENS
from tidepipe_common.telemetry.listener import serve_metrics
from tidepipe_common.telemetry.otlp import open_traces
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


def _knobs(settings: ControllerSettings, most_rows: int = 0) -> Knobs:
    """What was chosen of the policy's settings, by name or by the flags that many policies share.

    most_rows: sequences of a step at most, so that no more may run; 0: there is no such limit.
    """
    name = settings.policy
    flags: dict[str, Knob] = {}
    if settings.prefill_tokens:
        flags[step_knob(name)] = settings.prefill_tokens
    if settings.max_running:
        flags["max_running"] = settings.max_running
    if settings.reserve is not None:
        flags["reserve"] = settings.reserve
    knobs = {**flags, **parse_knobs(settings.policy_settings, name)}
    if most_rows:
        knobs["max_running"] = min(int(knobs.get("max_running", 0)) or most_rows, most_rows)
    make_setup(name, {knob: value for knob, value in knobs.items() if knob != "switching"})
    return knobs


def scheduler_spec_of(
    settings: ControllerSettings, about: StageAbout, split: tuple[int, ...], body: Body | None = None
) -> SchedulerSpec:
    """The instance that these options describe, on such stages. body: where it differs from the options."""
    device = about.device.partition(":")[0]
    return SchedulerSpec(
        policy=settings.policy,
        shape=about.shape,
        split=split,
        device=settings.hardware or LIKELY_DEVICE.get(device, "l20"),
        profile=read_profile(settings.profile) if settings.profile else None,
        # One core differs from another by a factor, which reported times correct; GPUs differ in kind.
        modelled=settings.hardware is not None or device == "cpu",
        block_size=body.block_size if body else settings.block_size,
        microbatches=settings.microbatches,
        max_sequences=settings.max_sequences,
        knobs=_knobs(settings, body.most_rows if body else 0),
        prefix_caching=settings.prefix_caching == "on",
        histories=body is not None and body.wants_history,
        signals=bool(settings.predictor) and settings.length_signal == "on" and settings.engine == "native",
        kv_transfer=settings.kv_transfer,
    )


async def serve(settings: ControllerSettings, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop."""
    _knobs(settings)  # what is wrong with them is said before any stage is asked
    incarnation = uuid.uuid4().hex
    telemetry = Telemetry()
    server = RpcServer(settings.listen, telemetry=telemetry)
    health = _Health(server)
    metrics = ControllerMetrics(telemetry, settings.instance_id)
    async with contextlib.AsyncExitStack() as stack:
        journal = stack.enter_context(_open_journal(settings))
        traces = await stack.enter_async_context(
            open_traces(settings.otlp, "controller", settings.instance_id)
        )
        brain = _Brain(settings, journal)
        body = make_body(settings, incarnation, lambda: brain.cost)
        instance = LiveInstance(
            body,
            lambda about: brain.scheduler(body),
            settings.predictor,
            health.tell,
            journal,
            metrics.note,
            SequenceSpans(traces, settings.instance_id),
        )
        metrics.export(instance)
        address = await start_serving(
            server,
            ControllerServicer(instance, settings, incarnation, lambda: brain.cost),
            TimelineServicer(instance, settings.instance_id),
        )
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(instance.run(), name="instance"),
                group.create_task(health.run(), name="health"),
            ]
            if await either(health.once_up, lifecycle.stopping):
                assert body.about is not None
                async with (
                    registered(
                        settings.router,
                        settings.instance_id,
                        settings.advertise or address,
                        body.about.model,
                        incarnation,
                    ),
                    serve_metrics(telemetry, settings.listen, settings.metrics_port) as metrics_address,
                ):
                    tune_gc()
                    lifecycle.announce_ready(address, metrics_address)
                    await lifecycle.stopping.wait()
            await instance.drain(DRAIN_S)
            for task in tasks:
                task.cancel()
        await body.close()
    await server.stop(grace_s=1.0)


def make_body(settings: ControllerSettings, incarnation: str, cost: Callable[[], StepCost]) -> Body:
    """What computes for the instance. cost: of steps, as far as is known now. ConfigError, ModelError."""
    if settings.engine == "native":
        return Pipeline(_pipeline_config(settings), incarnation, cost)
    # Late: only such an instance needs vLLM, which takes its settings from the environment at that moment.
    from controller.engines.vllm.start import vllm_body

    return vllm_body(settings, cost)


def _pipeline_config(settings: ControllerSettings) -> PipelineConfig:
    return PipelineConfig(
        stage_addresses=settings.stage_addresses,
        block_size=settings.block_size,
        kv_blocks=settings.kv_blocks,
        max_step_tokens=MAX_STEP_TOKENS,
        layer_split=settings.layers,
        token_mix=TokenMix.parse(settings.token_mix),
    )


@contextlib.contextmanager
def _open_journal(settings: ControllerSettings) -> Iterator[Journal | None]:
    if settings.journal is None:
        yield None
        return
    file = open_journal(settings.journal, settings.instance_id)
    try:
        yield Journal(file)
    finally:
        with contextlib.suppress(OSError):  # a full disk: the log says so
            file.close()


class _Brain:
    """The scheduler, which can be made only when the stages have said what they are, and its costs.

    cost: what steps take, as far as it is known; nothing yet before there is a scheduler.
    """

    def __init__(self, settings: ControllerSettings, journal: Journal | None) -> None:
        self.cost: LearningCost = LearnedCost()
        self._settings = settings
        self._journal = journal

    def scheduler(self, body: Body) -> Scheduler:
        assert body.about is not None, "it is up"
        ranges = [stage.account.layers for stage in body.stages]
        split = tuple(end - begin for begin, end in ranges)
        spec = scheduler_spec_of(self._settings, body.about, split, body)
        if self._journal is not None:
            self._journal.begin(spec)
        scheduler, self.cost = spec.build()
        return scheduler


class _Health:
    """Whether the stages are up, told to whoever asks the server, in order."""

    def __init__(self, server: RpcServer) -> None:
        self.once_up = asyncio.Event()
        self._server = server
        self._news: asyncio.Queue[bool] = asyncio.Queue()

    def tell(self, serving: bool) -> None:
        self._news.put_nowait(serving)
        if serving:
            self.once_up.set()

    async def run(self) -> None:
        while True:
            await self._server.set_serving(await self._news.get())


@contextlib.asynccontextmanager
async def registered(
    router: str | None, instance_id: str, address: str, model: str, incarnation: str
) -> AsyncIterator[None]:
    """Known to the router, if there is one; it is told at the end, unless that is an error."""
    if not router:
        yield
        return
    registration = Registration(
        router,
        instance_id=instance_id,
        controller_address=address,
        model=model,
        incarnation=incarnation,
    )
    async with asyncio.TaskGroup() as group:
        renewing = group.create_task(registration.run(), name="registration")
        yield
        renewing.cancel()
        await registration.withdraw()
    await registration.close()


def tune_gc() -> None:
    """Keep Python's cyclic garbage collector from stopping the process between two steps.

    What is there by now (modules, settings) stays for good and is never looked through again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG, GC_OLD, GC_OLD)


async def either(ready: asyncio.Event, stopping: asyncio.Event) -> bool:
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
