"""Sequences that move between instances in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.scheduler.slo import SloTarget
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Question, figures_of
from simulator.job import NOT_YET
from simulator.systems import cluster_of, scan
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from workloads.arrivals import MIXES

GROUPED = ClusterSpec(read_shape("codellama-34b"), hardware("l20"), 3, 4, max_total=4096)
QUESTION = Question(MIXES["sharegpt-like"](400, 1), SloTarget(5.0, 0.1), seconds=20.0, least_requests=10)


def test_the_scheduler_itself_moves_them_alike() -> None:
    """A fixed split: every prompt is computed at one instance, every answer at the others; all end, and no
    memory is held."""
    knobs = scan("roles:1", GROUPED)[0]
    seen = []
    for exact in (False, True):
        jobs = QUESTION.jobs(4.0)
        cluster = cluster_of("roles:1", knobs, GROUPED, len(jobs), exact=exact)
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
