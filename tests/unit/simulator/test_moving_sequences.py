"""Sequences that move between instances in virtual time, and shares of prefill that move."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.scheduler.slo import SloTarget
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Question, figures_of
from simulator.job import NOT_YET
from simulator.systems import cluster_of, default_knobs, scan
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from workloads.arrivals import MIXES
from workloads.files import open_workload

GROUPED = ClusterSpec(read_shape("codellama-34b"), hardware("l20"), 3, 4, max_total=4096)
QUESTION = Question(MIXES["sharegpt-like"](400, 1), SloTarget(5.0, 0.1), seconds=20.0, least_requests=10)


@pytest.mark.parametrize("system", ["roles:1", "auto"])
def test_the_scheduler_itself_moves_them_alike(system: str) -> None:
    """A fixed split: every prompt is computed at one instance, every answer at the others; all end, and no
    memory is held."""
    knobs = {**scan(system, GROUPED)[0], "prefill": 1}
    seen = []
    for exact in (False, True):
        jobs = QUESTION.jobs(4.0)
        cluster = cluster_of(system, knobs, GROUPED, len(jobs), exact=exact)
        cluster.run(jobs)
        assert cluster.log.handed_over >= 0.9 * len(jobs)
        assert all(job.first <= job.finished < NOT_YET for job in jobs)
        for instance in cluster.instances.values():
            report = instance.status(1e6, slack=False)
            assert (report.sequences, report.kv_free) == (0, report.kv_total)
        seen.append(figures_of(jobs, 4.0, QUESTION))
    skipped, itself = seen
    assert skipped.tpot_ms["p50"] == pytest.approx(itself.tpot_ms["p50"], rel=0.1)
    assert skipped.ttft_ms["p50"] == pytest.approx(itself.ttft_ms["p50"], rel=0.3)


def test_shares_move_where_the_link_bears_it() -> None:
    """Grouped heads over 10 Gbit/s: apart; full heads, or 0.1 Gbit/s: all stay alike."""
    tight = replace(QUESTION, slo=SloTarget(1.0, 0.05), seconds=90.0)
    for spec, apart in (
        (GROUPED, True),
        (replace(GROUPED, network_gb_s=0.0125), False),
        (replace(GROUPED, shape=read_shape("llama-30b")), False),
    ):
        jobs = tight.jobs(3.0)
        cluster = cluster_of("roles", {"prefill": 0, "budget": 512}, spec, len(jobs))
        cluster.run(jobs)
        assert bool(cluster.log.roles) is apart
        assert bool(cluster.log.handed_over) is apart


def test_taichi_flows_where_memory_ends() -> None:
    """Decode-heavy instances with little memory: their longest sequences go on at the prefill-heavy one,
    where the scheduler itself has them as well, and all keep their targets."""
    device = replace(hardware("l20"), memory_gb=22)
    spec = replace(GROUPED, shape=read_shape("llama-30b"), network_gb_s=10.0, hardware=device)
    knobs = {"prefill": 1, "budget": 128, "larger": 512}
    seen = []
    for exact in (False, True):
        jobs = replace(QUESTION, seconds=12.0).jobs(8.0)
        cluster = cluster_of("taichi", knobs, spec, len(jobs), exact=exact)
        cluster.run(jobs)
        assert figures_of(jobs, 8.0, QUESTION).attainment > 0.95
        assert all(job.first <= job.finished < NOT_YET for job in jobs)
        for instance in cluster.instances.values():
            report = instance.status(1e6, slack=False)
            assert (report.sequences, report.kv_free) == (0, report.kv_total)
        seen.append(cluster.log.handed_over)
    assert min(seen) > 0.1 * len(jobs)
    assert seen[0] == pytest.approx(seen[1], rel=0.25)


def test_arrow_finds_its_split_and_stays_there() -> None:
    """From two thirds for prompts to the split that serves within tight targets what hybrid batching does
    not; under constant load nobody changes sides any more."""
    tight = replace(QUESTION, slo=SloTarget(1.0, 0.05), seconds=90.0)
    jobs = tight.jobs(4.0)
    arrow = cluster_of("arrow", {"prefill": 2, "budget": 2048}, GROUPED, len(jobs))
    arrow.run(jobs)
    shares = [view.role.share for macro in arrow.macros for view in macro.views]
    assert sorted(shares) == [0.0, 0.0, 1.0]
    assert max(time_s for time_s, _ in arrow.log.roles) < 30.0
    assert figures_of(jobs, 4.0, tight).attainment > 0.9
    jobs = tight.jobs(4.0)
    cluster_of("hybrid", {"routing": "prefix", "budget": 256}, GROUPED, len(jobs)).run(jobs)
    assert figures_of(jobs, 4.0, tight).attainment < 0.8


def test_beginnings_are_borrowed_alike() -> None:
    """Agents' long prompts on two instances: as much is found as where they are kept together, at both kinds
    of instances, and no memory is held."""
    system = "route:prefix"
    spec = replace(GROUPED, instances=2, max_total=0)
    load = open_workload("agents", None, 0)
    question = replace(QUESTION, workload=load.within(spec.context, spec.context), least_requests=100)
    hits = []
    for exact, kv_transfer in ((False, False), (False, True), (True, True)):
        jobs = question.jobs(2.0)
        knobs = default_knobs(system, spec)
        cluster = cluster_of(system, knobs, replace(spec, kv_transfer=kv_transfer), len(jobs), exact=exact)
        cluster.run(jobs)
        assert bool(cluster.log.borrowed) is kv_transfer
        for instance in cluster.instances.values():
            report = instance.status(1e6, slack=False)
            under_way = report.transfer.far.under_way + report.transfer.near.under_way
            assert (report.sequences, report.kv_free, under_way) == (0, report.kv_total, 0)
        hits.append(figures_of(jobs, 2.0, question).hit_rate)
    without, skipped, itself = hits
    assert skipped >= without - 0.005
    assert itself == pytest.approx(skipped, abs=0.01)
