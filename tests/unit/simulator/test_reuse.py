"""KV blocks that are found again in virtual time: what it saves, and that it changes nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.scheduler.policies.catalog import Knobs
from router.scheduler.slo import SloTarget
from simulator.cluster_spec import ClusterSpec
from simulator.fast_forward_instance import FastForwardInstance, InstanceRules
from simulator.goodput import Question, Run, measure
from simulator.job import Job
from simulator.offline import PipelineSpec, run_offline
from simulator.predictions import predictor
from simulator.record import Recording
from simulator.setups import POLICIES
from simulator.systems import default_knobs, run_exactly, run_system
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.settings.router import RouterSettings
from workloads.files import open_workload
from workloads.mixes import SimRequest, Workload, sessions_of

PIPELINE = PipelineSpec(read_shape("llama2-13b"), hardware("l20"), 4, max_total=4096)
CLUSTER = ClusterSpec(read_shape("codellama-34b"), hardware("l20"), 1, 4, max_total=8192)
SLO = SloTarget(5.0, 0.1)
KNOBS: Knobs = {"routing": "least-loaded", "budget": 256}

lengths = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 60)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(lengths, st.sampled_from(POLICIES))
def test_where_nothing_is_shared_nothing_changes(drawn: list[tuple[int, int]], policy: str) -> None:
    """All prompts differ: the same steps at the same times with reuse as without."""
    load = Workload("w", tuple(SimRequest(*one) for one in drawn))
    runs = []
    for reuse in (True, False):
        recording = Recording(memory_every=1)
        spec = replace(PIPELINE, prefix_caching=reuse)
        result = run_offline(spec, policy, load, predictor("oracle"), 1, recording=recording).result
        assert (result.preemptions, result.cached_tokens) == (0, 0)
        runs.append((result, recording.steps, recording.memory, recording.switches))
    assert runs[0] == runs[1]


def ideal(load: Workload) -> int:
    """Tokens that are found with unlimited memory, if every answer is there before its next turn comes."""
    found = 0
    systems: set[int] = set()
    for turns in sessions_of(load.requests):
        system, tokens = turns[0].content[0]
        found += tokens // BLOCK_SIZE * BLOCK_SIZE if system in systems else 0
        systems.add(system)
        for before in turns[:-1]:
            # The end of the output ends it: the newest token before that is not looked at any more.
            found += (before.prompt_tokens + before.output_tokens - 2) // BLOCK_SIZE * BLOCK_SIZE
    return found


@pytest.mark.parametrize("policy", ["auto", "td-pipe", "hybrid"])
def test_with_memory_enough_all_is_found_that_was_there(policy: str) -> None:
    """Each system prompt is computed once, each turn what is new in it; and that takes less time."""
    load = open_workload("conversations:turns=3,think=0.5,answer=60", 60, 2).within(4096, 4096)
    runs = [
        run_offline(replace(PIPELINE, prefix_caching=reuse), policy, load, predictor("oracle"), 1).result
        for reuse in (True, False)
    ]
    assert runs[0].preemptions == 0
    assert runs[0].cached_tokens == ideal(load)
    assert runs[0].recomputed_tokens == 0 == runs[1].cached_tokens
    assert runs[0].makespan_s < runs[1].makespan_s
    assert runs[0].output_tokens_per_s < PIPELINE.bound(load).output_tokens_per_s
    assert 0.5 < runs[0].hit_rate < 1.0


@pytest.mark.parametrize("mix", ["conversations:turns=4,think=4", "agents:turns=4,system=1500"])
def test_the_skipping_instance_finds_what_the_scheduler_finds(mix: str) -> None:
    """Nearly the same tokens, and latencies."""
    load = open_workload(mix, 200, 1).within(8192, 8192)
    asked = Question(load, SLO, seconds=60.0, least_requests=10)
    skipped, exact = (measure("hybrid", KNOBS, CLUSTER, asked, 1.0, run) for run in (run_system, run_exactly))
    assert skipped.cached_tokens == pytest.approx(exact.cached_tokens, rel=0.01)
    assert skipped.tpot_ms["p50"] == pytest.approx(exact.tpot_ms["p50"], rel=0.05)
    assert skipped.ttft_ms["p50"] == pytest.approx(exact.ttft_ms["p50"], rel=0.2)
    without = measure("hybrid", KNOBS, replace(CLUSTER, prefix_caching=False), asked, 1.0)
    assert without.cached_tokens == 0
    assert without.ttft_ms["p50"] > 2 * skipped.ttft_ms["p50"]


@pytest.mark.parametrize("run", [run_system, run_exactly])
def test_a_router_that_knows_finds_more(run: Run) -> None:
    """A conversation goes where its last turn was, unless the router is told nothing."""
    spec = replace(CLUSTER, instances=4)
    load = open_workload("conversations:turns=5,think=4", 200, 1).within(8192, 8192)
    asked = Question(load, SLO, seconds=50.0, least_requests=10)
    share = {}
    for name, more in (("padg", {}), ("blind", {"blind": 1}), ("most-hits", {"routing": "most-hits"})):
        share[name] = measure("padg", {"budget": 256, **more}, spec, asked, 4.0, run).hit_rate
    assert share["blind"] < 0.8 * share["padg"]
    assert share["most-hits"] > 0.95 * share["padg"]


def test_routing_by_hits_never_loses_to_the_least_load() -> None:
    """What routers do where nobody says otherwise: the same to the last bit where all prompts differ, and far
    more turns in time where they go on."""
    spec = replace(CLUSTER, instances=8, tensor=2)
    assert default_knobs("hybrid", spec)["routing"] == RouterSettings.model_fields["routing"].default
    fresh = Question(open_workload("sharegpt-like", 400, 1), SLO, seconds=20.0)
    agents = Question(open_workload("agents:turns=5,think=1", 400, 11).within(8192, 8192), SLO, seconds=70.0)
    usual, least = default_knobs("hybrid", spec), KNOBS
    assert measure("hybrid", usual, spec, fresh, 20.0) == measure("hybrid", least, spec, fresh, 20.0)
    attained = [measure("hybrid", knobs, spec, agents, 8.0).attainment for knobs in (usual, least)]
    assert attained[0] > 0.9 > attained[1] + 0.1


requests = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(2, 5), st.integers(1, 60)), min_size=1, max_size=4),
        st.integers(1, 80),
        st.floats(0.0, 5.0),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(requests, st.booleans(), st.integers(20, 60))
def test_no_block_is_lost_in_virtual_time(
    drawn: Sequence[tuple[list[tuple[int, int]], int, float]], mixed: bool, blocks: int
) -> None:
    """Whatever is shared, however tight memory is: all end, and nothing is in use afterwards."""
    rules = InstanceRules(mixed=mixed, budget=128)
    instance = FastForwardInstance("i", rules, CLUSTER.latency(), 1, blocks * BLOCK_SIZE)
    jobs = []
    for index, (content, output, at) in enumerate(sorted(drawn, key=lambda one: one[2])):
        prompt = sum(tokens for _, tokens in content)
        job = Job(index, prompt, output, at, SLO, content=tuple(content))
        job.make_keys()
        jobs.append(job)
        instance.submit(job, at)
    instance.drain()
    assert all(job.finished < 1e9 and 0 <= job.cached < job.prompt for job in jobs)
    status = instance.status(instance.clock, slack=True)
    assert status.kv_free == status.kv_total == blocks * BLOCK_SIZE
    assert (status.tokens, status.left.tokens, status.window.tokens) == (0, 0, 0)
    instance.check()
