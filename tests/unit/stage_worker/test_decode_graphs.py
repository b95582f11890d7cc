"""Decode by graphs: which graph, what padding does, and when a step runs without; graphs are faked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.flash_attn_paged import FlashAttnAttention
from stage_worker.attention.flashinfer_paged import FlashInferAttention
from stage_worker.attention.static_batch import StaticBackend
from stage_worker.attention.torch_paged import TorchPagedAttention
from stage_worker.executors import torch_backend, torch_compute
from stage_worker.executors.decode_graphs import DecodeGraphs, capture_decode
from stage_worker.executors.graph_batches import graph_for, graph_sizes, padded
from stage_worker.executors.torch_executor import TorchExecutor
from stage_worker.kv_pool import KvGeometry, KvPool
from stage_worker.models.decoder import Decoder
from stage_worker.models.layer_ops import TorchLayerOps
from stage_worker.models.linear import PlainLinear
from stage_worker.models.rope import RotaryTable
from stage_worker.models.weights import LayerWeights, StageWeights
from tests.tiny_models import make_tiny_model, random_prompts
from tests.torch_pipeline import generate, make_pipeline
from tests.unit.stage_worker.test_attention_backends import Case
from tests.unit.stage_worker.test_cuda_attention import FLASH_ATTN, FLASHINFER, NoMark, batch

CPU = torch.device("cpu")
BLOCKS = 6
BACK_ENDS: dict[str, Callable[[Any], Any]] = {
    "flashinfer": lambda context: FlashInferAttention(context, FLASHINFER, make_mark=NoMark),
    "flash-attn": lambda context: FlashAttnAttention(context, FLASH_ATTN),
}


class FakeGraph:
    """Does the work again, over whatever lies in its buffers by then; its result stays in one place."""

    def __init__(self, work: Callable[[], torch.Tensor]) -> None:
        self._work = work
        self.result = work().clone()

    def replay(self) -> None:
        self.result.copy_(self._work())


def fake_capture(work: Callable[[], torch.Tensor]) -> tuple[FakeGraph, torch.Tensor]:
    graph = FakeGraph(work)
    return graph, graph.result


class Stage:
    """One layer of random weights, with a pool that has a spare block."""

    def __init__(self, backend: str) -> None:
        case = Case()
        spec = case.spec()
        generator = torch.Generator().manual_seed(3)

        def linear(inputs: int, outputs: int) -> PlainLinear:
            return PlainLinear(torch.randn(outputs, inputs, generator=generator) * inputs**-0.5, None)

        ones = torch.ones(spec.hidden)
        layer = LayerWeights(
            ones,
            linear(spec.hidden, spec.query_size + 2 * spec.kv_size),
            None,
            None,
            linear(spec.query_size, spec.hidden),
            ones,
            linear(spec.hidden, 2 * spec.intermediate),
            linear(spec.intermediate, spec.hidden),
        )
        geometry = KvGeometry(1, case.kv_heads, case.head_dim, case.block_size, torch.float32)
        self.pool = KvPool(geometry, BLOCKS, CPU, spare=1)
        rotary = RotaryTable(spec.rope, case.head_dim, spec.context_length, CPU)
        context = SimpleNamespace(spec=spec, first_layer=0, pool=self.pool, rotary=rotary)
        self.attention = BACK_ENDS[backend](context)
        self.decoder = Decoder(spec, 0, StageWeights((layer,)), self.attention, TorchLayerOps())
        self.hidden = spec.hidden

    def graphs(self, capture: Any = fake_capture) -> DecodeGraphs | None:
        return capture_decode(self.decoder, self.attention, self.pool, self.hidden, 4, capture)


@pytest.mark.parametrize("backend", BACK_ENDS)
def test_replays_equal_steps_without_graph(backend: str) -> None:
    with torch.inference_mode():
        plain, stage = Stage(backend), Stage(backend)
        graphs = stage.graphs()
        assert graphs is not None
        assert graphs.sizes == [1, 2, 4]
        generator = torch.Generator().manual_seed(5)
        prompt = batch([0, 0, 0], [20, 3, 9], [[4, 1], [0, 0], [3, 0]])
        residual = torch.randn(prompt.tokens, stage.hidden, generator=generator)
        assert graphs.forward(prompt, residual) is None  # rows of several tokens
        for one in (plain, stage):
            one.decoder.forward(prompt, residual.clone())
        for length in range(3):
            step = batch([20 + length, 3 + length, 9 + length], [1, 1, 1], [[4, 1], [0, 0], [3, 0]])
            residual = torch.randn(3, stage.hidden, generator=generator)
            expected = plain.decoder.forward(step, residual.clone())
            replayed = graphs.forward(step, residual.clone())
            assert replayed is not None
            torch.testing.assert_close(replayed, expected)
        # Padding has written to no block of a sequence.
        torch.testing.assert_close(stage.pool.keys(0)[:BLOCKS], plain.pool.keys(0)[:BLOCKS])
        many = batch([1] * 5, [1] * 5, [[n] for n in range(5)])
        assert graphs.forward(many, torch.zeros(5, stage.hidden)) is None  # more rows than any graph has


def test_graphs_are_dropped_if_a_replay_is_wrong_or_the_device_refuses() -> None:
    def stuck(work: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
        return SimpleNamespace(replay=lambda: None), work().clone()

    def refusing(work: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    def small_ones(work: Callable[[], torch.Tensor]) -> tuple[FakeGraph, torch.Tensor]:
        if len(work()) > 2:
            raise RuntimeError("no room in the workspace")
        return fake_capture(work)

    assert Stage("flash-attn").graphs(stuck) is None
    assert Stage("flash-attn").graphs(refusing) is None
    some = Stage("flash-attn").graphs(small_ones)
    assert some is not None and some.sizes == [1, 2]


def test_only_back_ends_with_fixed_buffers_can_be_captured() -> None:
    assert not isinstance(TorchPagedAttention(SimpleNamespace()), StaticBackend)  # type: ignore[arg-type]
    assert isinstance(Stage("flashinfer").attention, StaticBackend)


@pytest.mark.parametrize(
    ("most_rows", "sizes"),
    [(1, (1,)), (3, (1, 2, 3)), (16, (1, 2, 4, 8, 16)), (20, (1, 2, 4, 8, 16, 20))],
)
def test_sizes_end_with_the_largest_step(most_rows: int, sizes: tuple[int, ...]) -> None:
    assert graph_sizes(most_rows) == sizes
    assert graph_sizes(100_000)[-1] == 256


def test_the_smallest_graph_that_holds_a_batch() -> None:
    def decode(rows: int) -> RaggedBatch:
        return batch([1] * rows, [1] * rows, [[n] for n in range(rows)])

    assert [graph_for(decode(rows), (1, 4, 8)) for rows in (1, 2, 4, 5, 8, 9)] == [1, 4, 4, 8, 8, None]
    assert graph_for(batch([0], [2], [[0]]), (1, 4, 8)) is None


def test_padding_rows_live_in_the_spare_block() -> None:
    result = padded(batch([17, 4], [1, 1], [[3, 5], [2, 0]]), 4, spare_block=9)
    assert result.tables.tolist() == [[3, 5], [2, 0], [9, 0], [9, 0]]
    assert result.slots.tolist() == [5 * 16 + 1, 2 * 16 + 4, 9 * 16, 9 * 16]
    assert result.contexts.tolist() == [18, 5, 1, 1]
    assert all(x.dtype == np.int32 for x in (result.tables, result.contexts, result.counts))


def test_an_executor_replays_its_decode_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEPIPE_NATIVE", "0")
    model = make_tiny_model("llama", tmp_path)
    prompts = random_prompts([1, 17, 40])
    expected = generate(make_pipeline(model, 2), prompts, 8, stagger=1)

    made: list[Any] = []

    def attention(context: Any) -> Any:
        made.append((context, FlashAttnAttention(context, FLASH_ATTN)))
        return made[-1][1]

    monkeypatch.setattr(torch_compute, "TorchPagedAttention", attention)
    monkeypatch.setattr(torch_backend, "KvPool", lambda *about: KvPool(*about[:3], spare=1))
    executors = make_pipeline(model, 2)
    replays = []
    for executor, (context, backend) in zip(executors, made, strict=True):
        assert isinstance(executor, TorchExecutor)
        hidden = context.spec.hidden
        graphs = capture_decode(executor._decoder, backend, context.pool, hidden, 4, fake_capture)
        assert graphs is not None
        executor._graphs = graphs
        for one in graphs._graphs.values():
            monkeypatch.setattr(one.graph, "replay", counting(one.graph.replay, replays))
    assert generate(executors, prompts, 8, stagger=1) == expected
    # In both stages: of ten steps, two brought a prompt of several tokens.
    assert len(replays) == 2 * (10 - 2)


def counting(replay: Callable[[], None], calls: list[None]) -> Callable[[], None]:
    def counted() -> None:
        calls.append(None)
        replay()

    return counted
