"""On a real GPU: every back end that can be had against plain PyTorch, and graphs against steps without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stage_worker.attention.backend import AttentionContext
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.choice import FLASH_ATTN, TORCH, rank
from stage_worker.attention.cuda_attention import MAKERS, facts_of
from stage_worker.attention.static_batch import StaticBackend
from stage_worker.attention.torch_paged import TorchPagedAttention
from stage_worker.attention.trial import disagreement
from stage_worker.device_copies import PinnedCopies
from stage_worker.executors.protocol import StageSpec
from stage_worker.executors.torch_backend import GRAPHS_SWITCH, TorchBackend
from stage_worker.executors.torch_executor import TorchExecutor
from stage_worker.kv_pool import KvGeometry, KvPool
from stage_worker.models.rope import RotaryTable
from tests.tiny_models import make_tiny_model
from tests.torch_pipeline import GREEDY
from tests.unit.stage_worker.test_attention_backends import Case
from tidepipe_common.types.plan import Phase, PlanRow, SequenceStart, StepPlan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("name", [name for name in MAKERS if name != TORCH])
@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 8, 64), (9, 3, 64), (32, 8, 128)])
@torch.inference_mode()
def test_back_ends_agree_with_plain_pytorch(
    name: str, window: int | None, heads: int, kv_heads: int, head_dim: int
) -> None:
    device = torch.device("cuda", 0)
    case = Case(heads, kv_heads, head_dim, 256 if name == FLASH_ATTN else 16, window)
    spec = case.spec()
    geometry = KvGeometry(1, kv_heads, head_dim, case.block_size, torch.bfloat16)
    rotary = RotaryTable(spec.rope, head_dim, spec.context_length, device)
    context = AttentionContext(spec, 0, KvPool(geometry, 200, device), rotary)
    ranking = rank(facts_of(context))
    if name not in ranking.usable:
        pytest.skip(ranking.refused[name])
    backend, reference = MAKERS[name](context), TorchPagedAttention(context)
    assert disagreement(backend, reference, context) is None
    # Longer contexts than the trial has: a prompt, then a decode step beside a chunk.
    size = case.block_size
    tables = np.arange(2 * (1024 // size), dtype=np.int32).reshape(2, -1)
    for first, counts in (([0, 0], [700, 300]), ([700, 300], [1, 260]), ([701, 560], [1, 1])):
        batch = RaggedBatch(np.array(first, np.int32), np.array(counts, np.int32), tables, size)
        qkv = torch.randn(batch.tokens, spec.query_size + 2 * spec.kv_size, device=device).bfloat16()
        expected = reference.begin(batch).attend(0, qkv.clone(), None)
        got = backend.begin(batch).attend(0, qkv.clone(), None)
        torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)


def test_replays_equal_steps_without_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model(
        "llama", tmp_path, dtype="bfloat16", head_dim=64, num_hidden_layers=2, max_position_embeddings=1024
    )
    spec = StageSpec(
        index=0, count=2, layer_begin=0, layer_end=1, block_size=16, kv_blocks=256, max_step_tokens=1024
    )

    def executor(switch: str) -> TorchExecutor:
        monkeypatch.setenv(GRAPHS_SWITCH, switch)
        return TorchBackend(str(model), device="cuda:0", dtype="bfloat16", memory_budget=1 << 30).configure(
            spec
        )

    graphed, plain = executor("1"), executor("0")
    if not isinstance(graphed._decoder._attention, StaticBackend):
        pytest.skip("no attention back end here that can be captured")
    assert graphed._graphs is not None, "the capture failed"
    # Short contexts alone, then long ones beside them in the same graph: libraries cut those into parts.
    lengths = {0: 20, 1: 21, 2: 700, 3: 23, 4: 500}
    starts = tuple(SequenceStart(key, GREEDY, length) for key, length in lengths.items())
    plans = [
        StepPlan(
            1 + key,
            Phase.PREFILL,
            (PlanRow(key, 0, n, (7 + key,) * n, tuple(range(50 * key, 50 * key + 50)), False),),
            (starts[key],),
        )
        for key, n in lengths.items()
    ]
    for step, keys in enumerate([(0, 1, 3), (0, 1, 2, 3), (0, 1, 2, 3, 4), (2,), (0, 1, 3)]):
        rows = tuple(PlanRow(key, lengths[key], 1, (9 + key + step,), (), False) for key in keys)
        plans.append(StepPlan(6 + step, Phase.DECODE, rows))
        for key in keys:
            lengths[key] += 1
    for plan in plans:
        got, expected = (
            torch.frombuffer(bytearray(one.execute(plan, None).hidden or b""), dtype=torch.bfloat16)
            for one in (graphed, plain)
        )
        torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)


def test_pinned_copies_move_what_they_are_given() -> None:
    copies = PinnedCopies(torch.device("cuda", 0))
    arrays = [np.random.default_rng(n).integers(0, 1 << 60, 100_000 * n + 1) for n in range(6)]
    on_device = [copies.upload("ids", array) for array in arrays]
    for array, tensor in zip(arrays, on_device, strict=True):
        assert copies.download(tensor) == array.tobytes()


def test_an_epoch_gives_its_memory_back(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path, dtype="bfloat16", head_dim=64, num_hidden_layers=2)
    free, _ = torch.cuda.mem_get_info(0)
    backend = TorchBackend(str(model), device="cuda:0", dtype="bfloat16", memory_budget=free)
    block_bytes = KvGeometry(2, backend.description.shape.kv_heads, 64, 16, torch.bfloat16).block_bytes
    blocks = int(0.6 * free) // block_bytes  # two such pools would not fit
    spec = StageSpec(
        index=0, count=1, layer_begin=0, layer_end=2, block_size=16, kv_blocks=blocks, max_step_tokens=256
    )
    for _ in range(3):
        executor = backend.configure(spec)
        del executor
