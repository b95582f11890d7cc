"""Rows that begin with the same KV blocks are read together, and get the same bits as alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.units import units
from stage_worker.models.native.build import VARIANTS
from tests.unit.stage_worker.test_attention_backends import DTYPES, Case, Sequences

TILE = 64


def random_batch(sequences: Sequences, queries: list[int], seed: int) -> RaggedBatch:
    """Rows that read blocks of sequence 0, many as another row before them, and write those of sequence 1."""
    chance, size = random.Random(seed), sequences.case.block_size
    readable, writable = (list(table) for table in sequences.tables)
    chance.shuffle(writable)
    tables: list[list[int]] = []
    firsts = []
    for count in queries:
        length = chance.randrange(1, 400)
        begin = chance.choice(tables)[: chance.randrange(26)] if tables and chance.random() < 0.8 else []
        table = [*begin, *chance.choices(readable, k=30)][: length // size]
        own = -(-(length + count) // size) - len(table)
        tables.append([*table, *(writable.pop() for _ in range(own))])
        firsts.append(length)
    width = max(map(len, tables)) + 1
    return RaggedBatch(
        np.array(firsts, dtype=np.int32),
        np.array(queries, dtype=np.int32),
        np.array([table + [0] * (width - len(table)) for table in tables], dtype=np.int32),
        size,
    )


def part_of(batch: RaggedBatch, row: int) -> RaggedBatch:
    one = slice(row, row + 1)
    return RaggedBatch(
        batch.first_positions[one], batch.counts[one], batch.tables[one].copy(), batch.block_size
    )


@pytest.mark.parametrize("backend", [variant.name for variant in VARIANTS])
@pytest.mark.parametrize(
    "case",
    [
        Case(heads=9, kv_heads=3, head_dim=64),
        Case(heads=9, kv_heads=3, head_dim=64, window=150),
        Case(heads=9, kv_heads=3, head_dim=64, int8=True),
        Case(heads=16, kv_heads=2, head_dim=80, block_size=32, int8=True, window=100),
        Case(heads=4, kv_heads=4, head_dim=16, block_size=48),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_those_of_each_row_alone(backend: str, case: Case, dtype: torch.dtype) -> None:
    sequences = Sequences(case, dtype, [1500, 1500], backend, threads=2)
    sequences.run(1500)
    together = 0
    for seed in range(3):
        batch = random_batch(sequences, [1] * 20 + [3] + [1] * 5, seed)
        together += int((units(batch, TILE, 6).shared > 0).sum())
        columns = (case.heads + 2 * case.kv_heads) * case.head_dim
        qkv = torch.randn(batch.tokens, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
        # Queries are rotated in place, hence the copies.
        result = sequences.backend.begin(batch).attend(0, qkv.clone(), None)
        for row in range(batch.rows):
            tokens = slice(batch.offsets[row], batch.offsets[row + 1])
            alone = sequences.backend.begin(part_of(batch, row)).attend(0, qkv[tokens].clone(), None)
            bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
            assert torch.equal(result[tokens].view(bits), alone.view(bits))
    assert together > 5


def test_units_share_what_their_tables_say() -> None:
    """Two families within one that have 64 slots in common, a stranger, and a row with several queries."""
    first = [1, 2, 3, 4]
    left, right = [*range(10, 18)], [*range(20, 28)]
    rows = [
        (first + left, 180, 1),
        (first + right, 180, 1),
        ([90, *first], 70, 1),
        (first + left, 190, 1),
        (first + left, 100, 20),
        (first + right, 130, 1),
        (first + right[:3] + [40], 190, 1),
    ]
    tables = np.zeros((len(rows), 13), dtype=np.int32)
    for row, (table, _, _) in enumerate(rows):
        tables[row, : len(table)] = table
    contexts, counts = (np.array([row[1:][at] for row in rows], dtype=np.int32) for at in (0, 1))
    found = units(RaggedBatch(contexts - 1, counts, tables, 16), TILE, 4)
    sets = {
        (tuple(found.order[first : first + count].tolist()), shared)
        for first, count, shared in zip(
            found.first.tolist(), found.rows.tolist(), found.shared.tolist(), strict=True
        )
    }
    assert sets == {((4,), 0), ((2,), 0), ((0, 3), 128), ((5, 1, 6), 64)}
