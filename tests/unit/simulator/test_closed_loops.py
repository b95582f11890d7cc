"""Conversations in virtual time: the next turn comes when the answer is there and has been thought about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from controller.scheduler.policies.catalog import Knobs
from router.scheduler.slo import SloTarget
from simulator.cluster import TICK_S
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Question
from simulator.job import Job
from simulator.offline import PipelineSpec, run_offline
from simulator.predictions import predictor
from simulator.systems import cluster_of, run_exactly, run_system
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from workloads.files import open_workload

PLANT = ClusterSpec(read_shape("codellama-34b"), hardware("l20"), 2, 4, max_total=8192)
TALK = open_workload("conversations:turns=4,think=2", 60, 1).within(8192, 8192)
QUESTION = Question(TALK, SloTarget(5.0, 0.1), seconds=20.0, least_requests=10)
Run = Callable[[str, Knobs, ClusterSpec, Sequence[Job]], None]


@pytest.mark.parametrize("run", [run_system, run_exactly])
@pytest.mark.parametrize("think", [1.0, 0.0])
def test_a_turn_comes_when_the_answer_has_been_read(run: Run, think: float) -> None:
    """Exactly then; at once only as soon as the cluster looks."""
    requests = tuple(replace(one, think_s=one.think_s * think) for one in TALK.requests)
    jobs = replace(QUESTION, workload=replace(TALK, requests=requests)).jobs(3.0)
    run("padg", {"budget": 256}, PLANT, jobs)
    pairs = [(job, job.following) for job in jobs if job.following is not None]
    assert len(pairs) > 20
    for before, after in pairs:
        early = after.arrival - before.finished - after.think_s
        assert -1e-9 <= early <= (1e-9 if after.think_s >= TICK_S else TICK_S)
        assert after.finished < 1e6


def test_a_refused_turn_ends_its_conversation() -> None:
    """Far too many for the target: what follows a refusal never comes, and the run ends."""
    jobs = replace(QUESTION, slo=SloTarget(0.3, 0.1)).jobs(40.0)
    cluster_of("padg", {"budget": 256}, PLANT, len(jobs), shed=True).run(jobs)
    refused = [job for job in jobs if job.refused < 1e6]
    assert refused
    for job in refused:
        assert job.following is None or job.following.arrival == float("inf")
    assert all(job.finished < 1e6 for job in jobs if job.arrival < 1e6 and job not in refused)


def test_disaggregation_says_that_it_cannot() -> None:
    with pytest.raises(ConfigError, match="do not wait for others' answers"):
        run_system("fudg-inter", {"prefill": 1, "budget": 2048}, PLANT, QUESTION.jobs(2.0))


def test_a_pipeline_takes_at_least_as_long_as_the_longest_conversation_thinks() -> None:
    """Offline all conversations begin at once."""
    spec = PipelineSpec(read_shape("llama2-13b"), hardware("l20"), 4, max_total=4096)
    talk = TALK.within(4096, 4096)
    quick = replace(talk, requests=tuple(replace(one, think_s=0.0) for one in talk.requests))
    slow, fast = (run_offline(spec, "auto", one, predictor("oracle"), seed=1).result for one in (talk, quick))
    assert slow.output_tokens == fast.output_tokens == talk.output_tokens
    thought = {one.session: 0.0 for one in talk.requests}
    for one in talk.requests:
        thought[one.session] += one.think_s
    assert slow.makespan_s > max(*thought.values(), fast.makespan_s)
