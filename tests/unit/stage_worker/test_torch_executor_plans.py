"""What configure() and execute() refuse, and what they keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stage_worker.executors import torch_backend, torch_device
from stage_worker.executors.protocol import Backend, Executor, PlanError, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.loading.stage_weights import StageSlice, load_stage
from stage_worker.models.weights import StageWeights
from tests.tiny_models import make_tiny_model
from tests.torch_pipeline import GREEDY, GreedySampler, make_pipeline
from tidepipe_common.errors import ConfigError, ModelError
from tidepipe_common.types.plan import Phase, PlanRow, SequenceStart, StepPlan

WHOLE = StageSpec(index=0, count=1, layer_begin=0, layer_end=4, block_size=8, kv_blocks=6, max_step_tokens=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"), max_position_embeddings=32)


def backend(model: Path, **options: object) -> TorchBackend:
    settings = {"device": "cpu", "dtype": "float32", "make_sampler": GreedySampler, **options}
    return TorchBackend(str(model), **settings)  # type: ignore[arg-type]


@pytest.fixture
def executor(model: Path) -> Executor:
    return backend(model).configure(WHOLE)


def row(
    key: int = 1,
    first: int = 0,
    tokens: Sequence[int] = (5, 6, 7),
    blocks: Sequence[int] = (0,),
    count: int | None = None,
) -> PlanRow:
    return PlanRow(key, first, len(tokens) if count is None else count, tuple(tokens), tuple(blocks), True)


def plan(*rows: PlanRow, starts: Sequence[int] = (), releases: Sequence[int] = ()) -> StepPlan:
    begun = tuple(SequenceStart(key=key, sampling=GREEDY, prompt_tokens=3) for key in starts)
    return StepPlan(1, Phase.PREFILL, rows, begun, tuple(releases))


def tokens_of(executor: Executor, step: StepPlan) -> tuple[int, ...]:
    sampled = executor.execute(step, None).sampled
    assert sampled is not None
    return sampled.token_ids


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (plan(row(key=9)), "row of unknown sequence 9"),
        (plan(row(), row(), starts=[2]), "two rows of the same sequence"),
        (plan(releases=[9]), "releases unknown sequence 9"),
        (plan(releases=[1, 1]), "releases a sequence twice"),
        (plan(starts=[1]), "starts sequence 1, which runs already"),
        (plan(starts=[2, 2]), "starts sequence 2, which runs already"),
        (plan(row(first=3), releases=[1]), "row of unknown sequence 1"),
        (plan(row(first=2)), "sequence 1 has 3 tokens, the plan goes on at 2"),
        (plan(row(first=4)), "sequence 1 has 3 tokens, the plan goes on at 4"),
        (plan(row(key=2, first=3), starts=[2]), "sequence 2 has 0 tokens, the plan goes on at 3"),
        (plan(row(first=3, blocks=[6])), "names KV blocks 6 to 6, the pool has 0 to 5"),
        (plan(row(first=3, blocks=[-1])), "names KV blocks -1 to -1"),
        (plan(row(first=3, blocks=[1] * 6)), "would have 7 of 6 KV blocks"),
        (plan(row(first=3, blocks=[2**70])), "must be integers"),
        (plan(row(first=3, tokens=range(6), blocks=[])), r"would have 9 tokens in 1 block\(s\) of 8"),
        (plan(row(first=3, tokens=[5] * 21, blocks=[1, 2])), "has 21 tokens, the limit is 20"),
        (plan(row(first=3, tokens=[], blocks=[])), "row without tokens"),
        (plan(row(first=3, tokens=[5], count=2)), "1 token ids for 2 positions"),
        (plan(row(first=3, tokens=[300])), "token ids from 300 to 300, the vocabulary is 0 to 299"),
        (plan(row(first=3, tokens=[-1])), "token ids from -1 to -1"),
    ],
)
def test_plans_that_do_not_fit(step: StepPlan, message: str, executor: Executor, model: Path) -> None:
    begin = plan(row(), starts=[1])
    executor.execute(begin, None)
    with pytest.raises(PlanError, match=message):
        executor.execute(step, None)
    # The refused plan has left no trace.
    untouched = backend(model).configure(WHOLE)
    untouched.execute(begin, None)
    further = plan(row(first=3, tokens=[9, 10], blocks=[]))
    assert tokens_of(executor, further) == tokens_of(untouched, further)


def test_positions_end_with_the_context(model: Path) -> None:
    executor = backend(model).configure(replace(WHOLE, max_step_tokens=40))
    with pytest.raises(PlanError, match="would have 33 tokens, the model's context is 32"):
        executor.execute(plan(row(tokens=[5] * 33, blocks=[0, 1, 2, 3, 4]), starts=[1]), None)


def test_activations_of_the_wrong_size(model: Path) -> None:
    executor = backend(model).configure(replace(WHOLE, index=1, count=2, layer_begin=2))
    step = plan(row(tokens=(), count=3), starts=[1])
    for hidden in (None, b"", bytes(3 * 64 * 4 - 1), bytes(4 * 64 * 4)):
        with pytest.raises(PlanError, match="its 3 tokens need 768"):
            executor.execute(step, hidden)
    assert executor.execute(step, memoryview(bytes(768))).sampled is not None


def test_release_and_start_again_in_one_plan(executor: Executor) -> None:
    begin = plan(row(), starts=[1])
    first = tokens_of(executor, begin)
    executor.execute(plan(row(key=2, tokens=[8, 9], blocks=[1]), starts=[2]), None)
    assert tokens_of(executor, plan(row(blocks=[3]), starts=[1], releases=[1, 2])) == first


def test_steps_without_rows(model: Path, executor: Executor) -> None:
    executor.execute(plan(row(), starts=[1]), None)
    assert tokens_of(executor, plan(releases=[1])) == ()
    first = backend(model).configure(replace(WHOLE, count=2, layer_end=2))
    assert first.execute(plan(), None).hidden == b""


def test_many_sequences_and_long_tables(model: Path) -> None:
    executor = backend(model).configure(replace(WHOLE, block_size=1, kv_blocks=500, max_step_tokens=400))
    keys = range(1, 151)
    rows = [row(key, tokens=[5, 6], blocks=[2 * key, 2 * key + 1]) for key in keys]
    together = tokens_of(executor, plan(*rows, starts=list(keys)))
    assert len(set(together)) == 1
    long = row(200, tokens=[5, 6] * 15, blocks=range(302, 332))
    assert len(tokens_of(executor, plan(long, starts=[200]))) == 1


def test_stale_blocks_do_not_show(model: Path) -> None:
    executor = backend(model).configure(WHOLE)
    clean = tokens_of(executor, plan(row(blocks=[1]), starts=[1]))
    further = plan(row(first=3, tokens=[9], blocks=[]))
    clean += tokens_of(executor, further)
    pool = executor._decoder._attention._context.pool  # type: ignore[attr-defined]
    executor.execute(plan(releases=[1]), None)
    for layer in range(4):
        pool.keys(layer).fill_(torch.nan)
        pool.values(layer).fill_(torch.inf)
    again = tokens_of(executor, plan(row(blocks=[1]), starts=[1]))
    assert again + tokens_of(executor, further) == clean


def test_sizes_are_reported(model: Path) -> None:
    executor = backend(model).configure(WHOLE)
    assert executor.kv_blocks == 6
    assert executor.kv_bytes == 6 * 2 * 4 * 2 * 16 * 8 * 4
    parameters = 300 * 64 + 64 + 4 * (64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64)
    # Packed weights are padded to whole panels.
    assert 4 * parameters <= executor.weight_bytes < 4 * parameters * 1.02


def test_pool_fills_the_budget(model: Path) -> None:
    weights = backend(model).configure(WHOLE).weight_bytes
    block = 2 * 4 * 2 * 16 * 8 * 4
    assert (
        backend(model, memory_budget=weights + 10 * block + 1)
        .configure(replace(WHOLE, kv_blocks=0))
        .kv_blocks
        == 10
    )
    assert backend(model, memory_budget=1 << 34).configure(replace(WHOLE, kv_blocks=0)).kv_blocks == 65_536
    small = backend(model, memory_budget=weights + block - 1)
    with pytest.raises(ConfigError, match=f"need {weights + block} bytes"):
        small.configure(replace(WHOLE, kv_blocks=0))
    with pytest.raises(ConfigError, match=f"need {weights + 6 * block} bytes"):
        small.configure(WHOLE)


def test_pool_that_the_machine_cannot_hold(model: Path) -> None:
    endless = backend(model, memory_budget=1 << 60)
    with pytest.raises(ConfigError, match="no memory for a KV pool"):
        endless.configure(replace(WHOLE, kv_blocks=1 << 40))


def test_weights_are_kept_while_the_layers_stay(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []

    def recording(checkpoint: Checkpoint, part: StageSlice, *rest: Any) -> StageWeights:
        loads.append(part)
        return load_stage(checkpoint, part, *rest)

    monkeypatch.setattr(torch_backend, "load_stage", recording)
    worker: Backend = backend(model)
    begin = plan(row(), starts=[1])
    first = tokens_of(worker.configure(WHOLE), begin)
    assert tokens_of(worker.configure(WHOLE), begin) == first
    assert len(loads) == 1
    worker.configure(replace(WHOLE, count=2, layer_end=2))
    worker.configure(replace(WHOLE, index=1, count=2, layer_begin=2))
    assert len(loads) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_end": 5},
        {"layer_end": 0},
        {"layer_end": 3},
        {"layer_begin": 1},
        {"index": 1},
        {"count": 2},
        {"block_size": 0},
        {"max_step_tokens": 0},
        {"kv_blocks": -1},
    ],
)
def test_stages_that_make_no_sense(changes: dict[str, int], model: Path) -> None:
    with pytest.raises(ConfigError, match="a stage cannot be configured so"):
        backend(model).configure(replace(WHOLE, **changes))


def test_description(model: Path) -> None:
    description = backend(model).description
    assert (description.device, description.dtype, description.shape.layers) == ("cpu", "float32", 4)
    assert description.fingerprint == backend(model).description.fingerprint
    assert description.memory_budget > 1 << 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device must be"),
        ({"device": "cpu:1"}, "device must be"),
        ({"device": "cuda:x"}, "device must be"),
        ({"dtype": "int8"}, "dtype must be auto, float32"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"memory_budget": 0}, "memory_budget must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], message: str, model: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        backend(model, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_absent(model: Path) -> None:
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        backend(model, device="cuda")


def test_unknown_model() -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        TorchBackend("some/where/else")


@pytest.mark.parametrize(
    ("native", "fast", "expected"),
    [
        ("bfloat16", True, torch.bfloat16),
        ("float16", True, torch.bfloat16),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.float32),
    ],
)
def test_automatic_data_type(
    native: str, fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_device, "has_fast_bfloat16", lambda: fast)
    assert torch_device.choose_dtype("auto", native, torch.device("cpu")) == expected


@pytest.mark.parametrize("free_gib", [1, 8, 16, 24, 80])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_a_gpu(free_gib: int, workers: int) -> None:
    """All together they leave a tenth, and each 2 GiB where there are 4."""
    free = free_gib << 30
    budget = torch_device.gpu_budget(free, workers)
    assert 0 < budget * workers <= 0.9 * free
    part = free // workers
    assert part - budget >= min(2 << 30, part // 2)


def test_real_sampler_fits(model: Path) -> None:
    real = TorchBackend(str(model), device="cpu", dtype="float32").configure(WHOLE)
    [fake] = make_pipeline(model, 1, block_size=8)
    begin = plan(row(), starts=[1])
    assert tokens_of(real, begin) == tokens_of(fake, begin)
    sampling = replace(GREEDY, temperature=1.0)
    output = real.execute(StepPlan(2, Phase.PREFILL, (), (SequenceStart(7, sampling, 3),)), None)
    assert output.sampled is not None
    assert [(one.key, "no seed" in one.detail) for one in output.sampled.errors] == [(7, True)]
