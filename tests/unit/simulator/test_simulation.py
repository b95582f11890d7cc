"""The simulator: exact bubbles, determinism, every policy end to end, bounds, workload formats."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from simulator.balance import StepBalance
from simulator.bound import ConvexHull
from simulator.offline import PipelineSpec, run_offline
from simulator.pipeline import SimulatedStages
from simulator.predictions import predictor
from simulator.record import Recording
from simulator.setups import POLICIES
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.correction import CorrectedCost
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.linear import MeasuredLinear, RooflineLinear
from tidepipe_common.latency.model import LatencyModel, Parallelism
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.latency.work import StepWork
from tidepipe_common.types.plan import Phase
from workloads.files import open_workload
from workloads.mixes import describe, sharegpt_like


class Clockwork:
    """A cost model of round numbers: a token is a second."""

    def linear_s(self, tokens: int) -> float:
        return float(tokens)

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        return 0.0

    def step_s(self, work: StepWork) -> float:
        return float(work.tokens)

    def stage_s(self, work: StepWork, layers: int, *, last: bool) -> float:
        return float(work.tokens * layers)

    def transfer_s(self, tokens: int) -> float:
        return 0.25


def test_bubbles_are_exact() -> None:
    """Stage i starts step k at max(its own end of k - 1, stage i - 1's end of k + transfer)."""
    stages = SimulatedStages(Clockwork(), 3, dispatch_s=0.5)
    assert stages.compute(StepWork(4, 0), 0.0) == ((0.5, 4.5), (4.75, 8.75), (9.0, 13.0))
    assert stages.compute(StepWork(1, 0), 0.0) == ((4.5, 5.5), (8.75, 9.75), (13.0, 14.0))
    assert stages.compute(StepWork(2, 0), 20.0) == ((20.5, 22.5), (22.75, 24.75), (25.0, 27.0))
    assert stages.busy_s == [7.0, 7.0, 7.0]


PLANT = PipelineSpec(read_shape("Llama2-13B"), hardware("L20"), 4, max_total=2048)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("quality", ["oracle", "noise:0.5", "none"])
def test_every_policy_serves_everything_below_the_bound(policy: str, quality: str) -> None:
    """All requests end, no stage is busier than time, and the bound holds."""
    workload = sharegpt_like(300, seed=5)
    result = run_offline(PLANT, policy, workload, predictor(quality), seed=1).result
    assert result.output_tokens == workload.output_tokens
    assert 0.2 < result.busy <= 1.0
    assert result.recomputed_tokens >= 0
    if not policy.startswith("tp-"):
        assert result.output_tokens_per_s < PLANT.bound(workload).output_tokens_per_s


def test_same_seed_same_run_and_a_recording_changes_nothing() -> None:
    """Deterministic to the last digit."""
    workload = sharegpt_like(200, seed=2)
    recording = Recording()
    runs = [
        run_offline(PLANT, "auto", workload, predictor("noise:0.3"), 7, recording=recorded).result
        for recorded in (None, recording)
    ]
    assert runs[0] == runs[1]
    assert len(recording.steps) == runs[0].steps
    ends = [step.spans[-1][1] for step in recording.steps]
    assert ends == sorted(ends)
    assert recording.switches


def test_balance_is_told_of_steps_of_one_kind_only() -> None:
    """Three steps of 1 and one of 2 s: the longest is 1.6 times their mean."""
    balance = StepBalance(4)
    for seconds in (1.0, 1.0, 1.0, 2.0):
        balance.note(Phase.DECODE, seconds)
    assert math.isclose(balance.mean, 0.6)
    for seconds in (9.0, 5.0):
        balance.note(Phase.PREFILL, seconds)
    assert math.isclose(balance.mean, 0.6)


def test_workload_formats(tmp_path: Path) -> None:
    """All that are promised, told apart by content."""
    files = {
        "azure.csv": (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
        ),
        "mooncake.jsonl": '{"timestamp": 1000, "input_length": 374, "output_length": 44, "hash_ids": []}\n',
        "fixed.json": json.dumps([{"prompt": [5] * 374, "out": 44}]),
        "sharegpt.json": json.dumps(
            [{"conversations": [{"from": "human", "value": "x" * 1496}, {"from": "gpt", "value": "y" * 176}]}]
        ),
        "answers.jsonl": json.dumps(
            {"prompt": [{"role": "user", "content": "x" * 1496}], "output_tokens": 44}
        ),
        "batch.jsonl": json.dumps({"custom_id": "a", "body": {"prompt": [1] * 374, "max_tokens": 44}}),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_text(content)
        first = open_workload(str(path), None, 0).requests[0]
        assert (first.prompt_tokens, first.output_tokens, first.arrival_s) == (374, 44, 0.0), name


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("what is this", "neither JSON nor a CSV with ContextTokens"),
        (" \n", "nothing is in it"),
        (AZURE, "no requests in it"),
        ("[]", "no requests in it"),
        ("[{", "not JSON: Expecting"),
        ("[" + "9" * 5000 + "]", "it cannot be read"),
        (AZURE + "x" * 200_000 + ",1,1\n", "it cannot be read"),
        (AZURE + "2023-11-16,1,1\n2023-11-16\n", "request 2 is none of an Azure CSV"),
        (AZURE + "noon,1,1\n", "request 1 is none of an Azure CSV"),
        ("[1]", 'request 1 is none of [{"prompt": .., "out": n}]'),
        ('[{"conversations": [{}, {}]}]', "request 1 is none of ShareGPT"),
        ('{"prompt": "a", "output_tokens": 1}\n[1]', "request 2 is none of answers"),
        ('{"prompt": "a", "output_tokens": 1e999}', "request 1 is none of answers"),
        ('{"custom_id": "a"}', "request 1 is none of an OpenAI batch"),
    ],
)
def test_what_is_no_workload_is_said_in_words(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "other"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        open_workload(str(path), None, 0)


def test_sampling_repeats_only_when_it_must() -> None:
    """As many as there are: each once. More: each at least once."""
    workload = sharegpt_like(50, seed=1)
    assert sorted(map(hash, workload.sample(50, 3).requests)) == sorted(map(hash, workload.requests))
    assert set(workload.sample(70, 3).requests) == set(workload.requests)
    assert workload.sample(20, 3) == workload.sample(20, 3) != workload.sample(20, 4)
    assert "50 requests" in describe(workload.requests)


def test_hull_lies_below_and_touches_the_ends() -> None:
    """Of a staircase: the line along its lower corners."""
    curve = [float(1 + (x - 1) // 4) for x in range(1, 17)]
    hull = ConvexHull(curve)
    assert hull.at(1) == 1.0
    assert hull.at(16) == 4.0
    assert all(hull.at(x) <= y + 1e-12 for x, y in enumerate(curve, start=1))
    assert hull.at(20) > hull.at(16)


def test_profile_and_roofline(tmp_path: Path) -> None:
    """A profile answers with what it holds, never faster between its points; bad files are explained."""
    path = tmp_path / "profile.csv"
    path.write_text("tokens,ms\n1,10\n128,20\n256,40\n")
    profile = MeasuredLinear(read_profile(path).table)
    assert [round(profile.seconds(n) * 1000, 6) for n in (1, 2, 128, 129, 256, 384)] == [
        10,
        20,
        20,
        40,
        40,
        60,
    ]
    path.write_text("tokens,ms\n1,10\nx,y\n")
    with pytest.raises(ConfigError, match="line 3"):
        read_profile(path)
    with pytest.raises(ConfigError):
        MeasuredLinear([(1, 1.0)])
    roofline = RooflineLinear(PLANT.shape, PLANT.hardware)
    # The published whole-model times of this device: 35.3 ms, 70.0 ms, 509 ms.
    for tokens, ms in ((1, 35.3), (256, 70.0), (2048, 509.0)):
        assert roofline.seconds(tokens) * 1000 == pytest.approx(ms, rel=0.07)


def test_tensor_parallelism_pays_for_its_collectives_and_memory_is_shared() -> None:
    """Slower than a quarter of one device, faster than one; the same KV room as a pipeline."""
    one = RooflineLinear(PLANT.shape, PLANT.hardware).seconds(512)
    tensor = PLANT.latency(tensor_parallel=True)
    assert one / 4 < tensor.linear_s(512) < one
    assert tensor.kv_blocks(16) == PLANT.latency().kv_blocks(16)
    with pytest.raises(ConfigError, match="use more devices"):
        LatencyModel(
            read_shape("llama2-70b"),
            hardware("l20"),
            RooflineLinear(PLANT.shape, PLANT.hardware),
            Parallelism(),
        ).kv_blocks(16)


def test_correction_follows_what_is_measured() -> None:
    """Decode twice as slow as predicted, prefill as predicted: known per phase after some steps."""
    cost = CorrectedCost(Clockwork())
    for _ in range(100):
        cost.observe(Phase.DECODE, StepWork(10, 100), 20.0)
        cost.observe(Phase.PREFILL, StepWork(50, 50, 100.0), 50.0)
    assert cost.step_s(StepWork(10, 100)) == pytest.approx(20.0)
    assert cost.step_s(StepWork(50, 50, 100.0)) == pytest.approx(50.0)
    cost.observe(Phase.DECODE, StepWork(10, 100), 10_000.0)
    assert cost.factor(Phase.DECODE) < 3.0
