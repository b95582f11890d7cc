"""Every attention backend against attention written out in float64."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from stage_worker.attention.backend import AttentionBackend, AttentionContext, HeadNorms
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.native_paged import NativePagedAttention
from stage_worker.attention.torch_paged import TorchPagedAttention
from stage_worker.kv_pool import KvGeometry, KvPool
from stage_worker.models.native.build import VARIANTS, BuildError, usable_variants
from stage_worker.models.native.library import NativeKernels
from stage_worker.models.rope import RotaryTable, inverse_frequencies
from stage_worker.models.spec import ModelSpec, RopeSpec

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
INT8_TOLERANCE = 6e-2
DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Case:
    """heads, kv_heads, head_dim, block_size of a model with one layer; int8: how its KV pool is kept."""

    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    block_size: int = 16
    window: int | None = None
    rope: bool = True
    qk_norm: bool = False
    int8: bool = False

    def spec(self) -> ModelSpec:
        return ModelSpec(
            architecture="llama",
            layers=1,
            hidden=64,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate=64,
            vocab_size=64,
            context_length=1024,
            eos_token_ids=(),
            tied_embeddings=True,
            rms_eps=1e-6,
            rope=RopeSpec(),
            qkv_bias=False,
            o_bias=False,
            mlp_bias=False,
            qk_norm=self.qk_norm,
            sliding_windows=(self.window,),
            rope_layers=(self.rope,),
            native_dtype="float32",
        )


class Sequences:
    """Sequences of random activations, and the backend's outputs for the tokens computed so far."""

    def __init__(
        self, case: Case, dtype: torch.dtype, lengths: Sequence[int], backend: str, threads: int = 1
    ) -> None:
        self.case, self.dtype, self.lengths = case, dtype, lengths
        spec = case.spec()
        generator = torch.Generator().manual_seed(1)
        columns = (case.heads + 2 * case.kv_heads) * case.head_dim
        self.qkv = [torch.randn(length, columns, generator=generator).to(dtype) for length in lengths]
        self.norms: HeadNorms | None = None
        if case.qk_norm:
            query, key = torch.rand(2, case.head_dim, generator=generator).add(0.5).to(dtype)
            self.norms = HeadNorms(query.clone(), key.clone())
        per_sequence = -(-max(lengths) // case.block_size)
        blocks = per_sequence * len(lengths) + 3
        geometry = KvGeometry(1, case.kv_heads, case.head_dim, case.block_size, dtype)
        if case.int8:
            geometry = NativePagedAttention.int8_geometry(geometry)
        self.pool = KvPool(geometry, blocks, CPU)
        # Whatever other sequences left behind must not show. A scale whose bytes are all 255 is no number.
        self.pool.keys(0).fill_(255 if case.int8 else torch.nan)
        self.pool.values(0).fill_(255 if case.int8 else torch.nan)
        order = torch.randperm(blocks, generator=generator).numpy().astype(np.int32)
        self.tables = order[: per_sequence * len(lengths)].reshape(len(lengths), per_sequence)
        rotary = RotaryTable(spec.rope, case.head_dim, spec.context_length, CPU)
        context = AttentionContext(spec, 0, self.pool, rotary)
        self.backend = make_backend(backend, dtype, context, threads)
        self.outputs = [torch.empty(0, case.heads * case.head_dim, dtype=dtype) for _ in lengths]

    def step(self, counts: dict[int, int]) -> None:
        """Compute the next counts[i] tokens of sequences i, in one batch."""
        rows = list(counts)
        first = [len(self.outputs[row]) for row in rows]
        batch = RaggedBatch(
            np.array(first, dtype=np.int32),
            np.array(list(counts.values()), dtype=np.int32),
            self.tables[rows],
            self.case.block_size,
        )
        parts = [self.qkv[row][at : at + counts[row]] for row, at in zip(rows, first, strict=True)]
        result = self.backend.begin(batch).attend(0, torch.cat(parts), self.norms)
        for row, part in zip(rows, torch.split(result, list(counts.values())), strict=True):
            self.outputs[row] = torch.cat((self.outputs[row], part))

    def run(self, chunk: int) -> list[torch.Tensor]:
        """Compute everything in chunks of the sequences, all in each step until one is done."""
        while True:
            counts = {
                index: min(chunk, length - len(self.outputs[index]))
                for index, length in enumerate(self.lengths)
                if length > len(self.outputs[index])
            }
            if not counts:
                return self.outputs
            self.step(counts)

    def expected(self, index: int) -> torch.Tensor:
        """Outputs of one sequence, in float64."""
        case = self.case
        heads = self.qkv[index].double().view(self.lengths[index], -1, case.head_dim)
        query, key, value = torch.split(heads, [case.heads, case.kv_heads, case.kv_heads], dim=1)
        if self.norms is not None:
            query, key = (
                x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
                for x, weight in ((query, self.norms.query), (key, self.norms.key))
            )
        positions = torch.arange(self.lengths[index])
        if case.rope:
            angles = torch.outer(positions.float(), inverse_frequencies(RopeSpec(), case.head_dim)).double()
            query, key = (turn(x, angles) for x in (query, key))
        key, value = (x.repeat_interleave(case.heads // case.kv_heads, dim=1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(case.head_dim)
        distance = positions[:, None] - positions
        seen = distance >= 0
        if case.window is not None:
            seen &= distance < case.window
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)


def turn(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def make_backend(name: str, dtype: torch.dtype, context: AttentionContext, threads: int) -> AttentionBackend:
    if name == "torch":
        return TorchPagedAttention(context)
    variants = usable_variants(bfloat16=dtype == torch.bfloat16)
    chosen = variants[0] if name == "native" else next((v for v in variants if v.name == name), None)
    if chosen is None:
        pytest.skip(f"this CPU has no {name}, or not for {dtype}")
    try:
        kernels = NativeKernels(chosen, dtype, threads)
    except BuildError as error:
        pytest.skip(str(error))
    assert NativePagedAttention.fits(context.spec, context.pool.geometry.block_size)
    return NativePagedAttention(kernels, context)


def assert_close(sequences: Sequences) -> None:
    for index, output in enumerate(sequences.outputs):
        tolerance = INT8_TOLERANCE if sequences.case.int8 else TOLERANCE[sequences.dtype]
        torch.testing.assert_close(output.double(), sequences.expected(index), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["torch", *(variant.name for variant in VARIANTS)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prefill_chunks_and_decode_in_mixed_batches(backend: str, dtype: torch.dtype) -> None:
    sequences = Sequences(Case(), dtype, [1, 15, 16, 17, 64, 65, 150], backend)
    sequences.step({4: 60, 5: 1})
    sequences.step({6: 129, 4: 1, 1: 15, 5: 3})
    sequences.step({6: 1, 4: 1, 0: 1, 3: 16, 5: 60})
    sequences.run(7)
    assert_close(sequences)


@pytest.mark.parametrize("backend", ["torch", "native", "avx2", "plain"])
@pytest.mark.parametrize(
    "case",
    [
        Case(heads=4, kv_heads=4, head_dim=16),
        Case(heads=9, kv_heads=3, head_dim=64),
        Case(heads=7, kv_heads=1, head_dim=128),
        Case(heads=10, kv_heads=1, head_dim=80, block_size=32),
        Case(heads=2, kv_heads=2, head_dim=256, block_size=48),
        Case(window=1),
        Case(window=20, rope=False),
        Case(window=64, qk_norm=True),
        Case(window=100, block_size=64),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_windows_and_norms(backend: str, case: Case, dtype: torch.dtype) -> None:
    sequences = Sequences(case, dtype, [40, 130, 131], backend)
    sequences.step({1: 100})
    sequences.step({1: 1, 2: 131})
    sequences.run(29)
    assert_close(sequences)


@pytest.mark.parametrize("backend", [variant.name for variant in VARIANTS])
@pytest.mark.parametrize(
    "case",
    [
        Case(int8=True),
        Case(heads=9, kv_heads=3, head_dim=64, int8=True),
        Case(heads=10, kv_heads=1, head_dim=80, block_size=32, qk_norm=True, int8=True),
        Case(heads=2, kv_heads=2, head_dim=256, window=20, int8=True),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_pool(backend: str, case: Case, dtype: torch.dtype) -> None:
    sequences = Sequences(case, dtype, [40, 130, 131, 1], backend)
    sequences.step({1: 100})
    sequences.step({1: 1, 2: 131})
    sequences.run(29)
    assert_close(sequences)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        Case(heads=9, kv_heads=3, head_dim=64),
        Case(heads=9, kv_heads=3, head_dim=64, window=50),
        Case(heads=9, kv_heads=3, head_dim=64, int8=True),
        Case(heads=9, kv_heads=3, head_dim=64, window=50, int8=True),
        Case(heads=14, kv_heads=2, head_dim=80, block_size=48),
        Case(heads=40, kv_heads=2, head_dim=16),
    ],
)
def test_native_results_do_not_depend_on_batch_or_chunks(dtype: torch.dtype, case: Case) -> None:
    lengths = [200, 37, 130]
    whole = Sequences(case, dtype, lengths, "native").run(1000)
    for seed in range(4):
        chance, parts = random.Random(seed), Sequences(case, dtype, lengths, "native")
        most = (1, 5, 40, 200)[seed]
        while left := {
            i: n - len(parts.outputs[i]) for i, n in enumerate(lengths) if n > len(parts.outputs[i])
        }:
            chosen = chance.sample(sorted(left), chance.randint(1, len(left)))
            parts.step({i: min(left[i], chance.choice((1, chance.randint(1, most)))) for i in chosen})
        assert all(torch.equal(one, other) for one, other in zip(whole, parts.outputs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    lengths = [200, 37, 130, 64]
    alone = Sequences(Case(), dtype, lengths, "native").run(50)
    shared = Sequences(Case(), dtype, lengths, "native", threads=3).run(50)
    assert all(torch.equal(left, right) for left, right in zip(alone, shared, strict=True))


def test_large_scores_do_not_overflow() -> None:
    sequences = Sequences(Case(), torch.float32, [100], "native")
    sequences.qkv[0] *= 40
    sequences.run(33)
    torch.testing.assert_close(sequences.outputs[0].double(), sequences.expected(0), rtol=1e-3, atol=1e-2)
