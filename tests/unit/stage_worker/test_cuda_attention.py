"""Attention back ends for CUDA, as far as they can be tried without a GPU.

The libraries are faked: what they are told (page tables, lengths, windows) is checked, and a fake that reads
the pool by it must agree with plain PyTorch. flex_attention itself runs on a CPU, slowly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from stage_worker.attention.backend import AttentionBackend, AttentionContext
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.choice import Facts, rank
from stage_worker.attention.cuda_attention import SWITCH, CudaAttention
from stage_worker.attention.flash_attn_paged import FlashAttnAttention
from stage_worker.attention.flashinfer_paged import FlashInferAttention
from stage_worker.attention.flex_paged import TILE, FlexPagedAttention, PackedRows
from stage_worker.attention.page_table import page_table
from stage_worker.attention.torch_paged import TorchPagedAttention
from stage_worker.attention.trial import disagreement, trial_batches
from stage_worker.kv_pool import KvGeometry, KvPool
from stage_worker.models.rope import RotaryTable
from tests.unit.stage_worker.test_attention_backends import Case, Sequences, assert_close
from tidepipe_common.errors import ConfigError

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


class NoMark:
    """A CPU is never behind."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def context_of(case: Case, blocks: int = 12) -> AttentionContext:
    spec = case.spec()
    geometry = KvGeometry(1, case.kv_heads, case.head_dim, case.block_size, torch.float32)
    rotary = RotaryTable(spec.rope, case.head_dim, spec.context_length, CPU)
    return AttentionContext(spec, 0, KvPool(geometry, blocks, CPU), rotary)


def attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, left: int) -> torch.Tensor:
    """One row: query [q, heads, d] at the end of its context, keys and values [context, kv_heads, d]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    position = torch.arange(len(keys) - len(query), len(keys))[:, None]
    distance = position - torch.arange(len(keys))
    hidden = (distance < 0) | (
        (distance > left) if left >= 0 else torch.zeros_like(distance, dtype=torch.bool)
    )
    scores = torch.einsum("qhd,khd->hqk", query, keys) * query.shape[-1] ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


class FakeWrapper:
    """A FlashInfer wrapper that computes from its plan alone, as the real one does, and keeps the plan."""

    decode = False

    def __init__(self, workspace: torch.Tensor, kv_layout: str = "NHD", **options: Any) -> None:
        assert kv_layout == "HND"
        assert workspace.dtype == torch.uint8
        assert not workspace[:4096].any()
        self.options = options
        self.plans: list[dict[str, Any]] = []

    def keep(self, names: str, tensors: tuple[torch.Tensor, ...], sizes: dict[str, Any]) -> None:
        arrays = dict(zip(names.split(), tensors, strict=True))
        assert all(tensor.dtype == torch.int32 for tensor in tensors)
        self.plans.append({name: tensor.tolist() for name, tensor in arrays.items()} | sizes)

    def run(self, query: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        plan = self.plans[-1]
        keys, values = (x.transpose(1, 2) for x in cache)
        assert query.shape[1:] == (plan["num_qo_heads"], keys.shape[-1])
        assert plan["page_size"] == keys.shape[1]
        ends = plan.get("qo_indptr", list(range(len(plan["indptr"]))))
        outputs = []
        for row, last in enumerate(plan["last_page_len"]):
            pages = plan["indices"][plan["indptr"][row] : plan["indptr"][row + 1]]
            context = (len(pages) - 1) * plan["page_size"] + last
            row_keys, row_values = (x[pages].flatten(0, 1)[:context] for x in (keys, values))
            part = query[ends[row] : ends[row + 1]]
            outputs.append(attention(part, row_keys, row_values, plan["window_left"]))
        return torch.cat(outputs)


class FakeDecode(FakeWrapper):
    def plan(self, *tensors: torch.Tensor, **sizes: Any) -> None:
        if self.options.get("use_cuda_graph"):
            assert len(tensors[2]) == len(self.options["paged_kv_last_page_len_buffer"])
            assert len(tensors[1]) <= len(self.options["paged_kv_indices_buffer"])
        self.keep("indptr indices last_page_len", tensors, sizes)


class FakePrefill(FakeWrapper):
    def plan(self, *tensors: torch.Tensor, **sizes: Any) -> None:
        assert sizes["causal"]
        self.keep("qo_indptr indptr indices last_page_len", tensors, sizes)


FLASHINFER = SimpleNamespace(
    BatchDecodeWithPagedKVCacheWrapper=FakeDecode, BatchPrefillWithPagedKVCacheWrapper=FakePrefill
)


def fake_kvcache(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **options: Any
) -> torch.Tensor:
    assert options["causal"]
    outputs = []
    for row, context in enumerate(options["cache_seqlens"].tolist()):
        pages = options["block_table"][row].long()
        row_keys, row_values = (x[pages].flatten(0, 1)[:context] for x in (keys, values))
        outputs.append(attention(query[row], row_keys, row_values, options["window_size"][0]))
    return torch.stack(outputs)


def fake_varlen(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **options: Any
) -> torch.Tensor:
    queries, ends = options["cu_seqlens_q"].tolist(), options["cu_seqlens_k"].tolist()
    assert options["max_seqlen_q"] == max(np.diff(queries))
    assert options["max_seqlen_k"] == max(np.diff(ends))
    outputs = []
    for row in range(len(ends) - 1):
        part = query[queries[row] : queries[row + 1]][None]
        outputs.append(
            fake_kvcache(
                part,
                keys,
                values,
                cache_seqlens=torch.tensor([ends[row + 1] - ends[row]]),
                block_table=options["block_table"][row : row + 1],
                causal=options["causal"],
                window_size=options["window_size"],
            )[0]
        )
    return torch.cat(outputs)


FLASH_ATTN = SimpleNamespace(flash_attn_with_kvcache=fake_kvcache, flash_attn_varlen_func=fake_varlen)

MAKERS: dict[str, Callable[[AttentionContext], AttentionBackend]] = {
    "flashinfer": lambda context: FlashInferAttention(context, FLASHINFER, make_mark=NoMark),
    "flash-attn": lambda context: FlashAttnAttention(context, FLASH_ATTN),
    "flex": lambda context: FlexPagedAttention(context, flex_attention),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(heads=7, kv_heads=1, head_dim=16, window=20, qk_norm=True),
        Case(block_size=48, window=64, rope=False),
    ],
)
def test_back_ends_attend_as_written_out(name: str, case: Case) -> None:
    sequences = Sequences(case, torch.float32, [1, 40, 150, 131], "torch")
    context = AttentionContext(
        case.spec(), 0, sequences.pool, RotaryTable(case.spec().rope, case.head_dim, 1024, CPU)
    )
    sequences.backend = MAKERS[name](context)
    sequences.step({2: 130})
    sequences.step({2: 1, 0: 1, 1: 30, 3: 129})
    sequences.step({2: 1, 1: 1, 3: 1})
    sequences.run(9)
    assert_close(sequences)


def test_a_compiler_that_fails_later_costs_no_step() -> None:
    calls = []

    def fragile(*heads: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append(heads)
        if len(calls) > 1:
            raise RuntimeError("no code for this size")
        result: torch.Tensor = flex_attention(*heads, **options)
        return result

    case = Case(window=50)
    sequences = Sequences(case, torch.float32, [200, 150], "torch")
    rotary = RotaryTable(case.spec().rope, case.head_dim, 1024, CPU)
    context = AttentionContext(case.spec(), 0, sequences.pool, rotary)
    backend = FlexPagedAttention(context, fragile)
    with pytest.raises(RuntimeError, match="no code"):  # in its trial it has to fail
        disagreement(backend, TorchPagedAttention(context), context)
    backend.passed()
    calls.clear()
    sequences.backend = backend
    sequences.run(60)
    assert_close(sequences)
    assert len(calls) == 2


def batch(first: list[int], counts: list[int], tables: list[list[int]], size: int = 16) -> RaggedBatch:
    return RaggedBatch(*(np.array(x, dtype=np.int32) for x in (first, counts, tables)), block_size=size)


def test_page_tables_hold_used_pages_only() -> None:
    pages = page_table(batch([15, 0, 31], [1, 17, 2], [[5, 0, 0], [7, 3, 9], [2, 8, 1]]))
    assert pages.indptr.tolist() == [0, 1, 3, 6]
    assert pages.indices.tolist() == [5, 7, 3, 2, 8, 1]
    assert pages.last_page_lengths.tolist() == [16, 1, 1]


def test_windows_count_themselves_and_have_a_plan_each() -> None:
    backend = FlashInferAttention(context_of(Case(window=20)), FLASHINFER, make_mark=NoMark)
    backend.begin(batch([3], [1], [[4]]))
    [wrapper] = backend._decode.values()
    assert backend.windows == [19]
    assert wrapper.plans == [
        {
            "indptr": [0, 1],
            "indices": [4],
            "last_page_len": [4],
            "num_qo_heads": 6,
            "num_kv_heads": 2,
            "head_dim": 32,
            "page_size": 16,
            "window_left": 19,
            "q_data_type": torch.float32,
            "kv_data_type": torch.float32,
        }
    ]


def test_mask_tiles_are_those_that_anything_is_seen_in() -> None:
    # Rows of 200 and 100 tokens behind 0 and 300; a decode row between them is not packed.
    tables = [list(range(25)), list(range(25, 50)), list(range(50, 75))]
    packed = PackedRows(batch([0, 9, 300], [200, 1, 100], tables))
    assert packed.tokens.tolist() == [*range(200), *range(201, 301)]
    for window in (1 << 30, 50):
        distance = packed.query_positions[:, None] - packed.key_positions
        seen = (packed.query_rows[:, None] == packed.key_rows) & (distance >= 0) & (distance < window)
        tiled = seen.reshape(seen.shape[0] // TILE, TILE, seen.shape[1] // TILE, TILE).any(axis=(1, 3))
        assert (packed.tiles(window) >= tiled).all()
        assert packed.tiles(window).sum() <= tiled.sum() + 1
    # 13 pages of the first row and 25 of the last, padded to whole tiles.
    assert packed.blocks.tolist() == [*range(13), *range(50, 75), 0, 0]


H100 = Facts((9, 0), frozenset({"flashinfer", "flash_attn", "triton"}), torch.bfloat16, 128, 16)


@pytest.mark.parametrize(
    ("changes", "usable"),
    [
        ({}, ["flashinfer", "flashinfer-fa2", "flex", "torch"]),
        ({"block_size": 256}, ["flashinfer", "flashinfer-fa2", "flash-attn", "flex", "torch"]),
        ({"importable": {"flash_attn", "triton"}, "block_size": 512}, ["flash-attn", "flex", "torch"]),
        ({"importable": set()}, ["torch"]),
        ({"capability": (7, 5)}, ["torch"]),
        ({"dtype": torch.float32, "block_size": 256}, ["flex", "torch"]),
        ({"head_dim": 80, "block_size": 256}, ["flash-attn", "flex", "torch"]),
        ({"head_dim": 8}, ["torch"]),
    ],
)
def test_ranking(changes: dict[str, Any], usable: list[str]) -> None:
    names = Facts.__slots__
    facts = Facts(**({name: getattr(H100, name) for name in names} | changes))
    ranking = rank(facts)
    assert list(ranking.usable) == usable
    assert all(ranking.refused.values())


def test_one_back_end_can_be_asked_for() -> None:
    assert rank(H100, "flex").usable == ("flex", "torch")
    assert rank(H100, "torch").usable == ("torch",)
    with pytest.raises(ConfigError, match="no attention back end 'flash'"):
        rank(H100, "flash")


class Wrong:
    """Forgets the window, and so is right for short contexts only."""

    def __init__(self, context: AttentionContext) -> None:
        spec = dataclasses.replace(context.spec, sliding_windows=(None,))
        self._backend = TorchPagedAttention(dataclasses.replace(context, spec=spec))

    def begin(self, batch: RaggedBatch) -> Any:
        return self._backend.begin(batch)


def raising(context: AttentionContext) -> AttentionBackend:
    raise RuntimeError("no kernel for this head size")


def test_a_wrong_back_end_and_one_that_raises_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    context = context_of(Case(window=20))
    assert "differs from plain PyTorch" in (
        disagreement(Wrong(context), TorchPagedAttention(context), context) or ""
    )
    makers = {"flashinfer": raising, "flashinfer-fa2": Wrong, "flex": MAKERS["flashinfer"]}
    chosen = CudaAttention(makers).first_that_works(context, H100)
    assert isinstance(chosen, FlashInferAttention)
    makers["flex"] = Wrong
    chosen = CudaAttention(makers).first_that_works(context, H100)
    assert isinstance(chosen, TorchPagedAttention)


@pytest.mark.parametrize(("blocks", "size"), [(1, 1), (1, 16), (5, 8), (100, 16)])
def test_a_trial_stays_within_the_pool(blocks: int, size: int) -> None:
    batches = trial_batches(blocks, size, 1024)
    assert batches
    assert all(
        one.tables.max() < blocks and one.contexts.max() <= one.tables.shape[1] * size for one in batches
    )
