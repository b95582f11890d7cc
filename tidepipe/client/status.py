"""How a cluster stands, as plain values (`Client.status`)."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe.client.plain import typed
from tidepipe.v1 import admin_pb2
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
class PrefixReuse:
    """How KV blocks are used again by sequences that begin alike; counters since the controller started.

    on: False where nothing is kept nor shared (`--prefix-caching off`).
    kept_blocks: nobody uses them now, and they count as free. findable_blocks: kept ones, and those in use.
    asked_tokens: of sequences when they were given memory; found_tokens: of these, not computed;
    found_again_tokens: of these, of sequences that had been preempted.
    evicted_blocks: contents given up because their memory was needed.
    """

    on: bool
    kept_blocks: int
    findable_blocks: int
    asked_tokens: int
    found_tokens: int
    found_again_tokens: int
    evicted_blocks: int

    @property
    def hit_rate(self) -> float | None:
        """found_tokens / asked_tokens; None before anything was asked for."""
        return self.found_tokens / self.asked_tokens if self.asked_tokens else None


@dataclass(frozen=True, slots=True)
class HandOverNote:
    """What became of a sequence that moved between instances."""

    age_s: float
    text: str


@dataclass(frozen=True, slots=True)
class HandOvers:
    """Sequences that moved between instances; counters since the controller started.

    handed_over: went on elsewhere. taken_over: came, and go on behind their KV blocks; recomputed: in vain.
    fetched_bytes, fetch_s: of what came. found_blocks: not sent, their content was here.
    expired: grants that ended by time. bytes_per_s, latency_s: rate and fixed time that are expected of the
    next fetch from another node; near_bytes_per_s, near_latency_s: of the next one within the node.
    recent: newest last.
    """

    handed_over: int
    taken_over: int
    recomputed: int
    fetched_bytes: int
    fetch_s: float
    found_blocks: int
    expired: int
    bytes_per_s: float
    recent: tuple[HandOverNote, ...] = ()
    latency_s: float = 0.0
    near_bytes_per_s: float = 0.0
    near_latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """An instance's own account; counters since its controller started.

    kv_blocks_free: that nobody uses, kept ones included. reuse: None if it does not say. hand_overs: None if
    it hands nothing over. dispatch_s: what a step costs beside computing, by as many steps as it was measured
    by; 0: it is assumed.
    """

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
    reuse: PrefixReuse | None = None
    hand_overs: HandOvers | None = None
    dispatch_s: float = 0.0
    dispatch_steps: int = 0


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """An instance as the router knows it. status: None if it did not answer; error says why.

    model: that it serves, by its first name.
    """

    instance_id: str
    controller_address: str
    connected: bool
    draining: bool
    assigned: int
    error: str
    status: PipelineStatus | None
    model: str = ""


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
    return typed(ClusterStatus, message)
