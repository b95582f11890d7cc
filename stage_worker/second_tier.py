"""The second tier of a stage: slots for contents of KV blocks, in a file or in page-locked memory.

Which content is in which slot, and what is copied when, the controller says.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from stage_worker.executors.protocol import OffloadError, PlanError
from stage_worker.kv_pool import KvPool
from tidepipe_common.errors import ConfigError
from tidepipe_common.settings.offload import OffloadPlace
from tidepipe_common.types.plan import BlockCopies

STEP_BYTES = 256 << 20
"""Copied in each direction by one step at most: a tenth of a second, or a few, of others' waiting."""
_CHUNK = 256 << 20
"""Of page-locked memory, of which PyTorch gives powers of two only."""
_TRIAL_BLOCKS = 8
_PREFIX = "tidepipe-kv-"
_MOST_VECTORS = 512
"""Of one call: systems take 1,024."""

if TYPE_CHECKING:
    from typing_extensions import Buffer

Pairs = Sequence[tuple[int, int]]


class SecondTier(Protocol):
    """Slots of one epoch, used by the compute thread alone."""

    slots: int

    def save(self, pairs: Pairs) -> None:
        """Copy blocks to slots, (block, slot). OffloadError: they are lost."""
        ...

    def load(self, pairs: Pairs) -> None:
        """Copy slots to blocks, (slot, block). OffloadError: they cannot be read."""
        ...

    def close(self) -> None:
        """Give the memory, or the file, back."""
        ...


class FileTier:
    """A file that has no name, so that whatever ends the process ends it too, and nobody else can open it.

    It grows as it is used, to its bound at most. OSError if it cannot be made.
    """

    def __init__(self, pool: KvPool, place: OffloadPlace) -> None:
        self.slots = place.nbytes // pool.geometry.block_bytes
        self._nbytes = pool.geometry.block_bytes
        self._rows = [layer.numpy() for layer in pool.block_bytes_by_layer()]
        # Open as long as the epoch.
        self._file = tempfile.TemporaryFile(dir=place.folder, prefix=_PREFIX, buffering=0)  # noqa: SIM115

    def save(self, pairs: Pairs) -> None:
        """See SecondTier."""
        for block, slot in pairs:
            self._copy(os.pwritev, block, slot)

    def load(self, pairs: Pairs) -> None:
        """See SecondTier."""
        for slot, block in pairs:
            self._copy(os.preadv, block, slot)

    def _copy(self, call: Callable[[int, Sequence[Buffer], int], int], block: int, slot: int) -> None:
        at = slot * self._nbytes
        for begin in range(0, len(self._rows), _MOST_VECTORS):
            parts = [row[block] for row in self._rows[begin : begin + _MOST_VECTORS]]
            wanted = sum(part.nbytes for part in parts)
            try:
                moved = call(self._file.fileno(), parts, at)
            except OSError as error:
                raise OffloadError(f"the file of --kv-offload: {error.strerror}") from error
            if moved != wanted:
                raise OffloadError(f"the file of --kv-offload: {moved} bytes instead of {wanted} were copied")
            at += wanted

    def close(self) -> None:
        """See SecondTier."""
        self._file.close()


class PinnedTier:
    """Page-locked memory beside a GPU: copies are queued on its stream, in order with the steps.

    RuntimeError if there is not as much memory.
    """

    def __init__(
        self, pool: KvPool, place: OffloadPlace, allocate: Callable[[int], torch.Tensor] | None = None
    ) -> None:
        """allocate: page-locked bytes, uint8."""
        nbytes = pool.geometry.block_bytes
        # Powers of two, or PyTorch would lock more than was granted.
        chunk = _CHUNK
        while chunk > place.nbytes:
            chunk >>= 1
        self._per_chunk = chunk // nbytes
        chunks = place.nbytes // chunk if self._per_chunk else 0
        self.slots = chunks * self._per_chunk
        make = allocate or (lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True))
        self._chunks = [
            make(chunk)[: self._per_chunk * nbytes].view(self._per_chunk, -1) for _ in range(chunks)
        ]
        self._pool = pool

    def save(self, pairs: Pairs) -> None:
        """See SecondTier."""
        for block, slot in pairs:
            self._slot(slot).copy_(self._pool.block(block), non_blocking=True)

    def load(self, pairs: Pairs) -> None:
        """See SecondTier."""
        for slot, block in pairs:
            self._pool.block(block).copy_(self._slot(slot), non_blocking=True)

    def _slot(self, slot: int) -> torch.Tensor:
        """In the block's own shape."""
        flat = self._chunks[slot // self._per_chunk][slot % self._per_chunk]
        block = self._pool.block(0)
        return flat.view(block.dtype).view(block.shape)

    def close(self) -> None:
        """See SecondTier."""
        self._chunks.clear()


def check_place(place: OffloadPlace) -> None:
    """ConfigError unless a file of that size can be made there, as far as that can be known beforehand."""
    folder = place.folder or Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=_PREFIX):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"--kv-offload cannot make a file in {folder}: {error.strerror}") from error
    if free < place.nbytes:
        raise ConfigError(
            f"--kv-offload wants {place.nbytes} bytes in {folder}, where {free} are free; "
            "name a smaller size or another folder, as SIZE:DIR"
        )


def open_tier(pool: KvPool, place: OffloadPlace, device: torch.device) -> SecondTier:
    """Slots for this pool. ConfigError: not one block fits; OSError, RuntimeError: no file, no memory."""
    tier: SecondTier = FileTier(pool, place) if device.type == "cpu" else PinnedTier(pool, place)
    if not tier.slots:
        tier.close()
        raise ConfigError(
            f"--kv-offload of {place.nbytes} bytes holds no KV block of this stage, which has "
            f"{pool.geometry.block_bytes} bytes; name a larger size"
        )
    return tier


class BlockMover:
    """Carries a plan's copies out. block_s: what loading a block took in a trial, seconds."""

    def __init__(self, pool: KvPool, tier: SecondTier, finish: Callable[[], None]) -> None:
        """finish: wait for the device. The pool must be unused still: the trial writes to it."""
        self.slots = tier.slots
        self.step_blocks = max(1, STEP_BYTES // pool.geometry.block_bytes)
        self._blocks = pool.blocks
        self._tier = tier
        count = min(_TRIAL_BLOCKS, tier.slots, pool.blocks)
        places = [(number, number) for number in range(count)]
        tier.save(places)
        tier.load(places)
        finish()
        begin = time.perf_counter()
        tier.load(places)
        finish()
        self.block_s = (time.perf_counter() - begin) / count

    def execute(self, copies: BlockCopies) -> None:
        """Saves, then loads. PlanError: there is no such block or slot."""
        loads = [(block, slot) for slot, block in copies.loads]
        for block, slot in (*copies.saves, *loads):
            if not (0 <= block < self._blocks and 0 <= slot < self.slots):
                raise PlanError(
                    f"a copy between block {block} of {self._blocks} and slot {slot} of {self.slots}"
                )
        self._tier.save(copies.saves)
        self._tier.load(copies.loads)

    def close(self) -> None:
        """Give the slots back."""
        self._tier.close()
