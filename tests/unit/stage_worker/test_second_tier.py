"""The second tier of a stage: what comes back is what was saved, whatever the pool holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stage_worker.executors.protocol import OffloadError, PlanError
from stage_worker.kv_pool import KvGeometry, KvPool, PoolAccess
from stage_worker.second_tier import BlockMover, FileTier, PinnedTier, SecondTier, check_place, open_tier
from tidepipe_common.errors import ConfigError
from tidepipe_common.settings.offload import OffloadPlace, parse_offload
from tidepipe_common.types.plan import BlockCopies

CPU = torch.device("cpu")
PAGEABLE: Callable[[int], torch.Tensor] = lambda size: torch.empty(size, dtype=torch.uint8)  # noqa: E731


def pool_of(dtype: torch.dtype) -> KvPool:
    pool = KvPool(KvGeometry(3, 2, 16, 8, dtype), 6, CPU, spare=1)
    pool.occupy()
    for block in range(6):
        pool.block(block).copy_(torch.arange(block, block + 3 * 2 * 2 * 8 * 16).view(3, 2, 2, 8, 16) % 101)
    return pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("kind", ["file", "pinned"])
def test_blocks_come_back_as_they_were(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Saves before loads, so that one step may do both with one block; others are left alone."""
    pool = pool_of(dtype)
    place = OffloadPlace(64 * pool.geometry.block_bytes, tmp_path)
    tier: SecondTier = FileTier(pool, place) if kind == "file" else PinnedTier(pool, place, PAGEABLE)
    mover = BlockMover(pool, tier, lambda: None)
    assert 0 < mover.slots <= 64
    assert mover.block_s > 0
    before = [pool.block(block).clone() for block in range(6)]
    last = mover.slots - 1
    mover.execute(BlockCopies(saves=((0, last), (1, 1))))
    mover.execute(BlockCopies(saves=((2, 2),), loads=((last, 2), (1, 3))))
    mover.execute(BlockCopies(loads=((2, 4),)))
    for block, origin in enumerate((0, 1, 0, 1, 2, 5)):
        assert torch.equal(pool.block(block), before[origin])
    with pytest.raises(PlanError):
        mover.execute(BlockCopies(loads=((mover.slots, 0),)))
    with pytest.raises(PlanError):
        mover.execute(BlockCopies(saves=((6, 0),)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_blocks_of_one_pool_become_those_of_another(dtype: torch.dtype) -> None:
    """A layer at a time, whatever the layers before it; what they say of their layout tells them apart."""
    source, target = pool_of(dtype), pool_of(dtype)
    there, here = PoolAccess(source, 0, "native"), PoolAccess(target, 1, "native")
    assert there.layout == here.layout != PoolAccess(source, 0, "plain").layout
    before = [target.block(block).clone() for block in range(6)]
    data = there.read(2, (5, 0))
    assert len(data) == 2 * there.layer_block_bytes
    here.write(2, (1, 3), data)
    for block, origin in ((1, 5), (3, 0)):
        assert torch.equal(target.block(block)[1], source.block(origin)[2])
        assert torch.equal(target.block(block)[0], before[block][0])
    assert all(torch.equal(target.block(block), before[block]) for block in (0, 2, 4, 5))
    with pytest.raises(ValueError, match="bytes for 1 blocks"):
        here.write(2, (1,), data)


def test_a_file_that_fails_says_so(tmp_path: Path) -> None:
    pool = pool_of(torch.float32)
    tier = FileTier(pool, OffloadPlace(64 * pool.geometry.block_bytes, tmp_path))
    with pytest.raises(OffloadError, match="0 bytes instead of"):
        tier.load([(40, 0)])


def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are free"):
        check_place(OffloadPlace(1 << 49, tmp_path))
    with pytest.raises(ConfigError, match="cannot make a file"):
        check_place(OffloadPlace(1 << 20, tmp_path / "missing"))
    with pytest.raises(ConfigError, match="holds no KV block"):
        open_tier(pool_of(torch.float32), OffloadPlace(100, tmp_path), CPU)
    assert parse_offload("1.5GiB:/a:b") == OffloadPlace(3 << 29, Path("/a:b"))
    for text in ("8", "8GB", "0GiB", "8GiB:", "-1GiB", ""):
        with pytest.raises(ValueError, match="such as 8GiB"):
            parse_offload(text)
