"""How a cluster stands, as plain values (`Client.status`)."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe.v1 import admin_pb2, controller_pb2, predictor_pb2
from tidepipe_common.codec.plan import phase_from_wire
from tidepipe_common.types.plan import Phase


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage. Busy times in seconds since its controller started; layers [layer_begin, layer_end).

    busy_share: of the last `window_s`. bubble_share: of the working time since start, not computing.
    slow_because: why it computes several times slower than it could; empty: it does not.
    """

    index: int
    address: str
    pid: int
    layer_begin: int
    layer_end: int
    rss_bytes: int
    prefill_busy_s: float
    decode_busy_s: float
    alive: bool
    device: str
    dtype: str
    plan_wait_s: float = 0.0
    busy_share: float = 0.0
    bubble_share: float = 0.0
    slow_because: str = ""


@dataclass(frozen=True, slots=True)
class PhaseSwitch:
    """A turn of the phase: how long ago, and why, with its numbers."""

    age_s: float
    before: Phase
    after: Phase
    reason: str


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """An instance's own account; counters since its controller started."""

    incarnation: str
    epoch: int
    serving: bool
    detail: str
    policy: str
    phase: Phase
    phase_age_s: float
    phase_reason: str
    phase_switches: int
    waiting: int
    running: int
    batch_sizes: tuple[int, ...]
    kv_blocks_total: int
    kv_blocks_free: int
    block_size: int
    preemptions: int
    steals: int
    prefill_tokens: int
    decode_tokens: int
    finished: int
    predictor_fallbacks: int
    stages: tuple[StageStatus, ...]
    kv_blocks_forecast: int = 0
    forecasts_scored: int = 0
    forecast_error_tokens: float = 0.0
    recent_switches: tuple[PhaseSwitch, ...] = ()
    window_s: float = 0.0
    working_s: float = 0.0


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """An instance as the router knows it. status: None if it did not answer; error says why."""

    instance_id: str
    controller_address: str
    connected: bool
    draining: bool
    assigned: int
    error: str
    status: PipelineStatus | None


@dataclass(frozen=True, slots=True)
class PredictorStatus:
    """The predictor; counters since it started."""

    model_version: str
    window: int
    observed: int
    predicted: int


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The router and all behind it; counters since the router started.

    shed: requests told to come again later; one that came again counts for itself. warnings: what needs a
    person, a sentence each.
    """

    router_id: str
    uptime_s: float
    queued: int
    running: int
    finished: int
    failed: int
    shed: int
    max_requests: int
    instances: tuple[InstanceStatus, ...]
    predictor_address: str
    predictor: PredictorStatus | None
    warnings: tuple[str, ...] = ()

    @property
    def slow_because(self) -> tuple[str, ...]:
        """Why stages compute several times slower than they could, each reason once."""
        stages = (stage for entry in self.instances if entry.status for stage in entry.status.stages)
        return tuple(sorted({stage.slow_because for stage in stages if stage.slow_because}))


def status_from_wire(message: admin_pb2.GetClusterStatusResponse) -> ClusterStatus:
    """Protobuf to plain values."""
    return ClusterStatus(
        router_id=message.router_id,
        uptime_s=message.uptime_s,
        queued=message.queued,
        running=message.running,
        finished=message.finished,
        failed=message.failed,
        shed=message.shed,
        warnings=tuple(message.warnings),
        max_requests=message.max_requests,
        instances=tuple(_instance(entry) for entry in message.instances),
        predictor_address=message.predictor_address,
        predictor=_predictor(message.predictor) if message.HasField("predictor") else None,
    )


def _instance(entry: admin_pb2.InstanceEntry) -> InstanceStatus:
    return InstanceStatus(
        instance_id=entry.instance_id,
        controller_address=entry.controller_address,
        connected=entry.connected,
        draining=entry.draining,
        assigned=entry.assigned,
        error=entry.error,
        status=_pipeline(entry.status) if entry.HasField("status") else None,
    )


def _pipeline(status: controller_pb2.InstanceStatus) -> PipelineStatus:
    return PipelineStatus(
        incarnation=status.incarnation,
        epoch=status.epoch,
        serving=status.serving,
        detail=status.detail,
        policy=status.policy,
        phase=phase_from_wire(status.phase),
        phase_age_s=status.phase_age_s,
        phase_reason=status.phase_reason,
        phase_switches=status.phase_switches,
        waiting=status.waiting,
        running=status.running,
        batch_sizes=tuple(status.batch_sizes),
        kv_blocks_total=status.kv_blocks_total,
        kv_blocks_free=status.kv_blocks_free,
        block_size=status.block_size,
        preemptions=status.preemptions,
        steals=status.steals,
        prefill_tokens=status.prefill_tokens,
        decode_tokens=status.decode_tokens,
        finished=status.finished,
        predictor_fallbacks=status.predictor_fallbacks,
        stages=tuple(_stage(stage) for stage in status.stages),
        kv_blocks_forecast=status.kv_blocks_forecast,
        forecasts_scored=status.forecasts_scored,
        forecast_error_tokens=status.forecast_error_tokens,
        recent_switches=tuple(_switch(one) for one in status.recent_switches),
        window_s=status.window_s,
        working_s=status.working_s,
    )


def _stage(stage: controller_pb2.StageStatus) -> StageStatus:
    return StageStatus(
        index=stage.index,
        address=stage.address,
        pid=stage.pid,
        layer_begin=stage.layer_begin,
        layer_end=stage.layer_end,
        rss_bytes=stage.rss_bytes,
        prefill_busy_s=stage.prefill_busy_s,
        decode_busy_s=stage.decode_busy_s,
        alive=stage.alive,
        device=stage.device,
        dtype=stage.dtype,
        plan_wait_s=stage.plan_wait_s,
        busy_share=stage.busy_share,
        bubble_share=stage.bubble_share,
        slow_because=stage.slow_because,
    )


def _switch(switch: controller_pb2.PhaseSwitch) -> PhaseSwitch:
    return PhaseSwitch(
        switch.age_s, phase_from_wire(switch.before), phase_from_wire(switch.after), switch.reason
    )


def _predictor(status: predictor_pb2.GetPredictorStatusResponse) -> PredictorStatus:
    return PredictorStatus(
        model_version=status.model_version,
        window=status.window,
        observed=status.observed,
        predicted=status.predicted,
    )
