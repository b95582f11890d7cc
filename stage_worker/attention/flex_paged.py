"""Attention by PyTorch's flex_attention: all rows with several tokens in one compiled kernel."""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from stage_worker.attention.backend import AttentionContext, AttentionStep
from stage_worker.attention.batch import Int32Array, RaggedBatch
from stage_worker.attention.torch_paged import TorchStep
from tidepipe_common.model_source import cache_dir
from tidepipe_common.security.trusted_files import private_folder

TILE = 128
"""Queries and keys of one tile of the mask."""
_NO_WINDOW = 1 << 30
_MOST_REASON = 500
"""Characters of a compiler's complaint that go to the log."""

_COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"

Flex = Callable[..., Any]

_log = structlog.get_logger()


class FlexPagedAttention:
    """Decode rows as in the plain PyTorch backend; prompts packed, with a mask that keeps rows apart."""

    def __init__(self, context: AttentionContext, flex: Flex | None = None) -> None:
        """flex: `flex_attention`, compiled if None."""
        self._context = context
        self._flex: Flex | None = flex or _compiled()
        self._serving = False

    def passed(self) -> None:
        """See TriedBackend."""
        self._serving = True

    def begin(self, batch: RaggedBatch) -> AttentionStep:
        """Prepare a step."""
        if self._flex is None:
            return TorchStep(self._context, batch)
        return _FlexStep(self._context, batch, self._guarded)

    def _guarded(self, *heads: torch.Tensor, **options: Any) -> torch.Tensor | None:
        """What flex_attention returns; None if it fails while serving, and from then on.

        It compiles again for sizes unlike those before, so a failure may come long after the trial.
        """
        if self._flex is None:
            return None
        try:
            result: torch.Tensor = self._flex(*heads, **options)
        except Exception as error:  # of PyTorch's compiler
            if not self._serving:
                raise
            why = f"{type(error).__name__}: {error}"[:_MOST_REASON]
            _log.warning("attention without flex from now on", reason=why)
            self._flex = None
            return None
        return result


@functools.cache
def _compiled() -> Flex:
    # Else it keeps, and loads, code in a folder under /tmp whose name anybody can guess.
    if _COMPILED_CODE not in os.environ:
        try:
            os.environ[_COMPILED_CODE] = str(private_folder(cache_dir() / "inductor"))
        except OSError:
            os.environ[_COMPILED_CODE] = tempfile.mkdtemp(prefix="tidepipe-inductor-")
    # Lengths differ from step to step; one kernel for all of them. Whole: at the limit of recompilations it
    # would otherwise run uncompiled without a word, with all scores of a step in memory.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


class _FlexStep(TorchStep):
    def __init__(self, context: AttentionContext, batch: RaggedBatch, flex: Flex) -> None:
        super().__init__(context, batch)
        self._flex = flex
        self._masks: dict[int, BlockMask] = {}
        self._packed = PackedRows(batch) if (batch.counts > 1).any() else None
        if self._packed is not None:
            packed, device = self._packed, self._device
            self._tokens = torch.from_numpy(packed.tokens).to(device)
            self._gathered = torch.from_numpy(packed.blocks).to(device)
            self._unused = torch.from_numpy(packed.key_rows < 0).to(device)

    def _attend_long(
        self,
        result: torch.Tensor,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        caches: tuple[torch.Tensor, torch.Tensor],
        window: int | None,
    ) -> None:
        packed = self._packed
        if packed is None:
            return
        spec, count = self._spec, len(packed.tokens)
        padded = query.new_zeros(1, len(packed.query_rows), spec.heads, spec.head_dim)
        padded[0, :count] = query[self._tokens]
        keys, values = (self._gather_pages(cache) for cache in caches)
        attended = self._flex(
            padded.transpose(1, 2),
            keys,
            values,
            block_mask=self._mask(_NO_WINDOW if window is None else window),
            enable_gqa=True,
        )
        if attended is None:
            super()._attend_long(result, query, fresh, caches, window)
            return
        result[self._tokens] = attended[0, :, :count].transpose(0, 1)

    def _gather_pages(self, cache: torch.Tensor) -> torch.Tensor:
        """[1, kv_heads, packed slots, head_dim]; zero where there is no token: 0 times infinity is NaN."""
        heads = cache[self._gathered].transpose(0, 1)
        flat = heads.reshape(1, heads.shape[0], -1, heads.shape[-1])
        return flat.masked_fill_(self._unused[:, None], 0)

    def _mask(self, window: int) -> BlockMask:
        if window not in self._masks:
            assert self._packed is not None
            self._masks[window] = _block_mask(self._packed, window, self._device)
        return self._masks[window]


class PackedRows:
    """The rows with several tokens, one behind the other, and the slots of their blocks likewise.

    tokens: their indices in the batch, int64. blocks: to gather, int64, padded with block 0 to whole tiles.
    query_rows, query_positions: of the packed queries, padded to whole tiles with row -1, int32.
    key_rows, key_positions: of the gathered slots, row -2 where there is no token, int32.
    """

    def __init__(self, batch: RaggedBatch) -> None:
        rows = np.flatnonzero(batch.counts > 1)
        size = batch.block_size
        counts, contexts = batch.counts[rows], batch.contexts[rows]
        pages = -(-contexts // size)
        per_tile = math.lcm(size, TILE) // size
        self.tokens: npt.NDArray[np.int64] = np.flatnonzero(np.repeat(batch.counts > 1, batch.counts))
        in_use = np.arange(batch.tables.shape[1]) < pages[:, None]
        self.blocks = _pad(batch.tables[rows][in_use], per_tile, 0).astype(np.int64)
        self.query_rows = _pad(np.repeat(np.arange(len(rows)), counts), TILE, -1)
        self.query_positions = _pad(batch.positions[self.tokens], TILE, 0)
        # Slots of a row count from its first page's; those behind its context belong to nobody.
        self._first_slots = (np.cumsum(pages) - pages) * size
        begins = np.arange(int(pages.sum())) * size - np.repeat(self._first_slots, pages)
        positions = begins[:, None] + np.arange(size)
        owners = np.where(
            positions < np.repeat(contexts, pages)[:, None],
            np.repeat(np.arange(len(rows)), pages)[:, None],
            -2,
        )
        self.key_rows = _pad(owners.reshape(-1), per_tile * size, -2)
        self.key_positions = _pad(positions.reshape(-1), per_tile * size, 0)

    def tiles(self, window: int) -> npt.NDArray[np.bool_]:
        """Whether any query of a tile sees any key of a tile: [query tiles, key tiles]."""
        result = np.zeros((len(self.query_rows) // TILE, len(self.key_rows) // TILE), dtype=np.bool_)
        for tile in range(len(result)):
            part = slice(tile * TILE, (tile + 1) * TILE)
            for row in np.unique(self.query_rows[part]):
                if row < 0:
                    continue
                positions = self.query_positions[part][self.query_rows[part] == row]
                first = int(self._first_slots[row])
                begin, end = first + max(0, int(positions.min()) - window + 1), first + int(positions.max())
                result[tile, begin // TILE : end // TILE + 1] = True
        return result


def _pad(values: npt.NDArray[np.integer[Any]], multiple: int, filler: int) -> Int32Array:
    padded: Int32Array = np.full(-(-len(values) // multiple) * multiple, filler, dtype=np.int32)
    padded[: len(values)] = values
    return padded


def _block_mask(packed: PackedRows, window: int, device: torch.device) -> BlockMask:
    query_rows, query_positions, key_rows, key_positions = (
        torch.from_numpy(array).to(device)
        for array in (packed.query_rows, packed.query_positions, packed.key_rows, packed.key_positions)
    )
    # As a tensor: a number would be compiled into the kernel.
    reach = torch.tensor(window, dtype=torch.int32, device=device)

    def seen(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        distance = query_positions[query] - key_positions[key]
        return (query_rows[query] == key_rows[key]) & (distance >= 0) & (distance < reach)

    tiles = packed.tiles(window)
    counts = tiles.sum(axis=1, dtype=np.int32)
    order = np.argsort(~tiles, axis=1, kind="stable").astype(np.int32)
    return BlockMask.from_kv_blocks(
        torch.from_numpy(counts).to(device)[None, None],
        torch.from_numpy(order).to(device)[None, None],
        BLOCK_SIZE=TILE,
        mask_mod=seen,
        seq_lengths=(len(packed.query_rows), len(packed.key_rows)),
        compute_q_blocks=False,  # for gradients only
    )
