"""Profiling takes steps apart: what goes into their times comes out of the profile, and of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config import ClusterConfig
from launcher.local import with_kept_profile
from stage_worker.executors.protocol import StepOutput
from stage_worker.executors.torch_sequences import SequenceTables
from stage_worker.profiling.check import compare, mixed_steps
from stage_worker.profiling.measure import Plan, Slice, Stopwatch, derive
from stage_worker.profiling.rehearsal import Rehearsal, Step
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.kept_profile import Measured, kept_profile
from tidepipe_common.latency.linear import MeasuredLinear
from tidepipe_common.latency.model import Parallelism
from tidepipe_common.latency.profile import Profile, ProfileTerms
from tidepipe_common.latency.profile_file import read_profile, write_profile
from tidepipe_common.latency.work import StepWork, work_of
from tidepipe_common.types.plan import StepPlan

LAYERS = 12
TRUTH = ProfileTerms(
    layers=((1, 10.0), (64, 12.0), (128, 20.0), (256, 41.0)),
    head=((1, 2.0), (64, 5.0), (128, 9.0)),
    fixed=0.7,
    row=0.03,
    kv_token_us=1.5,
    pair_us=0.4,
)
PLAN = Plan(sizes=(1, 64, 128, 256), rows=(1, 64, 128), long=256)


class SteppedClock:
    """`layers` layers and the LM head, whose steps take what the truth says on a clock of their own."""

    def __init__(self, layers: int) -> None:
        self.now = 0.0
        self._layers = layers
        shape = read_shape("llama2-13b")
        self._cost = Profile(((1, 1.0), (2, 2.0)), TRUTH).cost(shape, hardware("l20"), Parallelism())
        self._shape_layers = shape.layers
        self._tables = SequenceTables(16, 1024, 256, 4096)

    def execute(self, plan: StepPlan, hidden: bytes | memoryview | None) -> StepOutput:
        self._tables.apply(plan)  # refuses what a real executor would refuse
        share = self._layers * self._shape_layers // LAYERS
        self.now += self._cost.stage_s(work_of(plan), share, last=True)
        return StepOutput(hidden=b"")

    def set_lengths_for_profiling(self, lengths: dict[int, int]) -> None:
        self._tables.set_lengths_for_profiling(lengths)


def times(layers: int, steps: list[Step] | None = None) -> dict[Step, float]:
    executor = SteppedClock(layers)
    rehearsal = Rehearsal(executor, kv_blocks=1024, block_size=16, hidden=None, clock=lambda: executor.now)
    stopwatch = Stopwatch(rehearsal, steps or PLAN.steps())
    stopwatch.round()
    return stopwatch.medians()


def test_the_parts_of_a_step_are_found() -> None:
    """Half of the layers measured, all of them reported."""
    found = derive(PLAN, Slice(6, times(6)), Slice(3, times(3)), LAYERS)
    assert found.terms is not None
    for name in ("fixed", "row", "kv_token_us", "pair_us"):
        assert getattr(found.terms, name) == pytest.approx(getattr(TRUTH, name), rel=0.01), name
    for points, truth in ((found.terms.layers, TRUTH.layers), (found.terms.head, TRUTH.head)):
        assert [size for size, _ in points] == [size for size, _ in truth]
        assert [ms for _, ms in points] == pytest.approx([ms for _, ms in truth], rel=0.02)
    assert dict(found.table)[64] == pytest.approx(0.7 + 12 + 64 * 0.03 + 5, rel=0.02)
    steps = mixed_steps(10, most_tokens=256, long=256)
    whole = Slice(40, times(LAYERS, steps))
    check = compare(found, read_shape("llama2-13b"), whole, steps)
    assert 0.98 < check.least <= check.ratio <= check.most < 1.02


def test_a_kept_profile_is_found_by_the_cluster_it_was_measured_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by no other."""
    monkeypatch.setenv("TIDEPIPE_CACHE", str(tmp_path))
    model = tmp_path / "model"
    config = ClusterConfig(model="m", stages=2, threads=1)
    path = kept_profile(Measured(str(model), "auto", "auto", None, 1, 2))
    assert with_kept_profile(config, model).profile is None
    write_profile(Profile(((1, 10.0), (256, 60.0)), TRUTH), {}, path)
    assert with_kept_profile(config, model).profile == str(path)
    for other in ({"threads": 2}, {"stages": 3}, {"dtype": "float32"}, {"executor": "emulated"}):
        assert with_kept_profile(config.model_copy(update=other), model).profile is None


def test_stages_add_up_and_the_head_is_the_last_one_s() -> None:
    """Over an uneven split, and a bare table as before."""
    shape = read_shape("llama2-13b")
    work = StepWork(tokens=64, kv_tokens=5000, pairs=0.0, rows=64, sampled=64)
    for profile in (Profile(((1, 10.0), (256, 40.0)), TRUTH), Profile(((1, 10.0), (256, 40.0)))):
        cost = profile.cost(shape, hardware("l20"), Parallelism(stages=2))
        first, last = cost.stage_s(work, 24, last=False), cost.stage_s(work, 16, last=True)
        assert first + last == pytest.approx(2 * cost.step_s(work))
        assert last > cost.stage_s(work, 16, last=False)


def test_files_keep_it_and_a_changed_csv_stands_alone(tmp_path: Path) -> None:
    """NAME.csv and NAME.json give the same; a CSV that somebody edited is taken as it is."""
    profile = Profile(((1, 10.0), (256, 60.0)), TRUTH)
    csv_path, json_path = write_profile(profile, {"model": "m"}, tmp_path / "p.csv")
    assert read_profile(csv_path) == read_profile(json_path) == profile
    csv_path.write_text("tokens,ms\n1,5\n256,9\n")
    assert read_profile(csv_path) == Profile(((1, 5.0), (256, 9.0)))
    json_path.write_text('{"format": "tidepipe-profile/1", "table": [[1, 2.0], [2, "x"]]}')
    with pytest.raises(ConfigError, match="not a latency profile"):
        read_profile(json_path)


def test_lines_only_between_points_that_were_chosen() -> None:
    """A bare table may hide a tile's edge between two points; a profile's own points do not."""
    points = [(1, 10.0), (128, 20.0), (256, 40.0)]
    assert MeasuredLinear(points).seconds(192) == pytest.approx(0.040)
    assert MeasuredLinear(points, interpolate=True).seconds(192) == pytest.approx(0.030)
