"""Offline runs: a workload that is all there from the start, on one pipeline of one kind of device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from controller.scheduler.policies.catalog import Knobs, make_setup
from controller.scheduler.scheduler import Scheduler
from simulator.bound import Bound, found_by_ideal, mixed_batch_bound
from simulator.pipeline import SimulatedInstance
from simulator.predictions import Predict
from simulator.record import Recording, RunResult
from simulator.setups import scan
from simulator.simulated_model import STOP
from tidepipe_common.latency.dispatch import DISPATCH_S
from tidepipe_common.latency.hardware import Hardware
from tidepipe_common.latency.model import LatencyModel, Parallelism
from tidepipe_common.latency.profile import Profile, cost_model
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.model_shape import ModelShape
from workloads.mixes import Workload


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """What the workload runs on: a model, split over devices of one kind.

    profile: measured times; None models them (roofline).
    max_total: tokens of one sequence at most; 0 for the model's context.
    layer_split: layers of each stage; empty for stages that take equally long.
    prefix_caching: as of live instances. dispatch_s: what a step costs beside computing.
    """

    shape: ModelShape
    hardware: Hardware
    devices: int
    profile: Profile | None = None
    max_total: int = 0
    layer_split: tuple[int, ...] = ()
    prefix_caching: bool = True
    dispatch_s: float = DISPATCH_S

    @property
    def context(self) -> int:
        """Tokens of one sequence at most."""
        return min(self.max_total, self.shape.context_length) if self.max_total else self.shape.context_length

    def latency(self, *, tensor_parallel: bool = False) -> LatencyModel:
        """Step times as a pipeline, or as one tensor-parallel stage."""
        parallel = Parallelism(1, self.devices) if tensor_parallel else Parallelism(self.devices, 1)
        return cost_model(self.shape, self.hardware, self.profile, parallel)

    def bound(self, workload: Workload) -> Bound:
        """Upper bound on the throughput of the pipeline."""
        cost = self.latency()
        kv_tokens = cost.kv_blocks(BLOCK_SIZE) * BLOCK_SIZE
        found = found_by_ideal(workload.requests) if self.prefix_caching else ()
        return mixed_batch_bound(workload.requests, cost, self.devices, kv_tokens, found)


@dataclass(frozen=True, slots=True)
class OfflineRun:
    """One policy's figures."""

    policy: str
    knobs: Knobs
    result: RunResult


def run_offline(
    spec: PipelineSpec,
    policy: str,
    workload: Workload,
    predict: Predict,
    seed: int,
    knobs: Knobs | None = None,
    recording: Recording | None = None,
    refine: Predict | None = None,
) -> OfflineRun:
    """Run one policy over the workload. seed: of the predictions' errors. refine: with the first tokens."""
    scheduler, cost, chosen = scheduler_of(spec, policy, knobs or {}, len(workload.requests))
    instance = SimulatedInstance(
        scheduler,
        cost,
        cost.parallel.stages,
        cost.kv_blocks(BLOCK_SIZE),
        split=spec.layer_split if cost.parallel.tensor == 1 else (),
        recording=recording,
    )
    requests = workload.at_once().requests
    refined = refine(requests, seed) if refine else ()
    return OfflineRun(policy, chosen, instance.run(requests, predict(requests, seed), refined=refined))


def scheduler_of(
    spec: PipelineSpec, policy: str, knobs: Knobs, requests: int
) -> tuple[Scheduler, LatencyModel, Knobs]:
    """What runs so many requests there; what its steps take; and all its settings."""
    cost = spec.latency(tensor_parallel=policy.startswith("tp-"))
    setup = make_setup(policy, knobs, cost, spec.hardware.name)
    config = setup.config(spec.context, (STOP,), max_sequences=requests, prefix_caching=spec.prefix_caching)
    return Scheduler(replace(config, dispatch_s=spec.dispatch_s), setup.policy), cost, setup.knobs


def best_of_scan(
    spec: PipelineSpec,
    policy: str,
    workload: Workload,
    predict: Predict,
    seed: int,
    scans: Iterable[Knobs] | None = None,
) -> OfflineRun:
    """The run with the highest throughput over all knobs that are scanned for the policy."""
    runs = (run_offline(spec, policy, workload, predict, seed, knobs) for knobs in scans or scan(policy))
    return max(runs, key=lambda run: run.result.output_tokens_per_s)
