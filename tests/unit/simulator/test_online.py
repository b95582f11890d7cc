"""Clusters in virtual time: the skipping instance against the scheduler itself, disaggregation, goodput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from controller.scheduler.policies.catalog import Knobs
from router.scheduler.mitosis import Bounds
from router.scheduler.routing_scheduler import OverallConfig
from router.scheduler.scaling import ScalingRules
from router.scheduler.slo import SloTarget
from simulator.cluster import ClusterRules, VirtualCluster
from simulator.cluster_spec import ClusterSpec
from simulator.fast_forward_instance import FastForwardInstance, InstanceRules
from simulator.goodput import PRECISION, Goodput, Question, confirmed, goodput, measure
from simulator.job import Job
from simulator.systems import run_exactly, run_system
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from workloads.arrivals import MIXES, Arrivals, parse_arrivals
from workloads.mixes import SimRequest

PLANT = ClusterSpec(read_shape("codellama-34b"), hardware("l20"), 4, 4, max_total=4096)
SLO = SloTarget(5.0, 0.1)
QUESTION = Question(MIXES["sharegpt-like"](400, 1), SLO, seconds=25.0, least_requests=10)


@pytest.mark.parametrize(
    ("system", "knobs", "stages"),
    [
        ("separate", {"routing": "least-loaded", "budget": 2048}, 1),
        ("hybrid", {"routing": "least-loaded", "budget": 256}, 1),
        ("padg-apart", {"budget": 2048}, 1),
        ("padg-published", {"budget": 2048}, 1),
        ("hybrid", {"routing": "round-robin", "budget": 256}, 2),
        ("vllm", {"routing": "least-loaded", "budget": 512}, 1),
    ],
)
def test_skipping_changes_little(system: str, knobs: dict[str, str | int], stages: int) -> None:
    """The same requests through the controller's scheduler: nearly the same latencies and attainment."""
    spec = replace(PLANT, tensor=4 // stages, stages=stages, instances=2)
    skipped, exact = (measure(system, knobs, spec, QUESTION, 6.0, run) for run in (run_system, run_exactly))
    assert abs(skipped.attainment - exact.attainment) < 0.06
    assert skipped.tpot_ms["p50"] == pytest.approx(exact.tpot_ms["p50"], rel=0.1)
    assert skipped.ttft_ms["p50"] == pytest.approx(exact.ttft_ms["p50"], rel=0.3)
    # Until the last one has ended: of a short run, one request that was routed otherwise moves it.
    assert skipped.output_tokens_per_s == pytest.approx(exact.output_tokens_per_s, rel=0.08)


@pytest.mark.parametrize("system", ["auto", "padg"])
@pytest.mark.parametrize("rate", [8.0, 10.5])
def test_policies_with_targets_attain_what_the_scheduler_does(system: str, rate: float) -> None:
    """Below the cliff and at it, where a step size that were chosen otherwise would show."""
    spec, asked = replace(PLANT, instances=2), replace(QUESTION, seconds=40.0, seed=5)
    skipped, exact = (
        measure(system, {"budget": 256}, spec, asked, rate, run) for run in (run_system, run_exactly)
    )
    assert skipped.attainment == pytest.approx(exact.attainment, abs=0.02)


def test_memory_is_given_back_and_preempted_requests_end() -> None:
    """Little memory: requests are computed again, all end, and nothing is held afterwards."""
    cost = PLANT.latency()
    instance = FastForwardInstance("i", InstanceRules(), cost, 1, kv_tokens=3008)
    jobs = [Job(i, 300, 500, 0.1 * i, SLO) for i in range(12)]
    for job in jobs:
        instance.submit(job, job.arrival)
    instance.drain()
    assert all(job.arrival < job.first <= job.resumed < job.finished < 1e6 for job in jobs)
    assert instance.preemptions > 0
    status = instance.status(instance.clock, slack=True)
    assert (status.kv_free, status.tokens, status.left.tokens, len(instance)) == (3008, 0, 0, 0)


def test_slow_links_ruin_disaggregation_and_nothing_else() -> None:
    """The KV cache of a model without grouped heads over 10 Gb Ethernet, and over InfiniBand."""
    mha = replace(PLANT, shape=read_shape("llama-30b"))
    knobs = {"prefill": 1, "budget": 2048}
    slow = measure("fudg-inter", knobs, mha, QUESTION, 6.0)
    quick = measure("fudg-inter", knobs, replace(mha, network_gb_s=50.0), QUESTION, 6.0)
    assert slow.attainment < 0.5 < quick.attainment
    inside = measure(
        "fudg-intra", {"prefill": 1, "tensor": 4, "budget": 2048}, mha, replace(QUESTION, seconds=90.0), 6.5
    )
    assert inside.attainment > 0.9


def test_goodput_is_a_rate_up_to_which_it_attains() -> None:
    """It attains there, and at all lower rates; next to it, it does not."""
    knobs = {"routing": "least-loaded", "budget": 256}
    found = goodput("hybrid", knobs, PLANT, QUESTION)
    assert found.figures is not None and found.figures.attainment >= 0.9
    assert found.figures.rate == found.rps
    assert measure("hybrid", knobs, PLANT, QUESTION, found.rps * 1.15).attainment < 0.9


def run_with_a_dip(system: str, knobs: Knobs, spec: ClusterSpec, jobs: Sequence[Job]) -> None:
    """Everything is served in time, but between 3.5 and 8 and above 27.6 requests per second."""
    rate = len(jobs) / jobs[-1].arrival
    for job in jobs:
        job.first = job.resumed = job.arrival + (60.0 if 3.5 < rate < 8.0 or rate > 27.6 else 0.1)
        job.finished = job.first + 0.01 * job.output


def test_goodput_lies_below_the_first_dip_wherever_the_search_is() -> None:
    """Attainment need not fall with the rate; what another way to run misses below counts as well."""
    found = goodput("hybrid", {}, PLANT, QUESTION, run=run_with_a_dip)
    assert found.rps == pytest.approx(3.5, rel=0.05)
    fooled = Goodput("hybrid", {}, 24.0, None)
    assert confirmed(fooled, PLANT, QUESTION, run_with_a_dip).rps == pytest.approx(3.5, rel=0.05)


CELLS = (
    ("hybrid", {"routing": "least-loaded", "budget": 256}, "sharegpt-like", 2),
    ("separate", {"routing": "least-loaded", "budget": 2048}, "sharegpt-like", 2),
    ("padg", {"budget": 256}, "sharegpt-like", 3),
    ("padg-apart", {"budget": 2048}, "longbench-like", 2),
)


@pytest.mark.parametrize(("system", "knobs", "mix", "seed"), CELLS)
def test_the_scheduler_itself_has_the_same_goodput(system: str, knobs: Knobs, mix: str, seed: int) -> None:
    """Within the search's precision, for a draw whose attainment is not on the edge at a rate of the grid."""
    spec = replace(PLANT, instances=1)
    workload = MIXES[mix](400, seed).within(4096, 4096)
    asked = replace(QUESTION, workload=workload, least_requests=150, seed=seed)
    skipped, exact = (goodput(system, knobs, spec, asked, run=run) for run in (run_system, run_exactly))
    assert skipped.rps == pytest.approx(exact.rps, rel=PRECISION)


def test_arrivals() -> None:
    """Rate and burstiness are as asked; a trace keeps its own times, stretched."""
    lengths = tuple(SimRequest(1, 1, arrival_s=float(i * i)) for i in range(4000))
    for kind, cv in (("poisson", 1.0), ("gamma:2", 2.0)):
        gaps = np.diff(parse_arrivals(kind).times(lengths, 5.0, seed=3))
        assert gaps.mean() == pytest.approx(0.2, rel=0.1)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)
    times = Arrivals("trace").times(lengths, 5.0, seed=3)
    assert times[-1] == pytest.approx(800.0)
    assert times[2000] == pytest.approx(200.0, rel=0.01)
    with pytest.raises(ConfigError, match="gamma:CV"):
        parse_arrivals("gamma:often")


def test_a_cluster_grows_under_overload_and_splits() -> None:
    """Requests that one instance cannot serve in time: more are added, and macro instances split."""
    cost, kv_tokens = PLANT.latency(), PLANT.kv_tokens()
    config = OverallConfig(
        policy="padg", bounds=Bounds(2, 3), max_pending=10_000, scaling=ScalingRules(SLO, calm_s=2.0)
    )

    def make(name: str, born: float) -> FastForwardInstance:
        return FastForwardInstance(name, InstanceRules(), cost, 1, kv_tokens, born)

    cluster = VirtualCluster(
        ClusterRules(config), make, cost, stages=1, context=PLANT.context, step_tokens=2048
    )
    cluster.start(1)
    jobs = replace(QUESTION, seconds=60.0).jobs(16.0)
    cluster.run(jobs)
    assert all(job.finished < 1e6 for job in jobs)
    assert cluster.log.instances[-1][1] >= 4
    assert any(note.what == "split" for note in cluster.log.scaling)
    late = [job for job in jobs if job.arrival > 50.0]
    assert sum(job.met(switch_wait=True) for job in late) > 0.8 * len(late)
