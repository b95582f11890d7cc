"""The sequences that a stage knows: their lengths and block tables, and whether a plan fits them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np
import numpy.typing as npt

from stage_worker.attention.batch import Int32Array, Int64Array, RaggedBatch
from stage_worker.executors.protocol import PlanError
from tidepipe_common.types.plan import StepPlan

_FIRST_ROWS = 64
_FIRST_WIDTH = 16


class SequenceTables:
    """Block tables in one array, a line per sequence, so that a batch's tables are gathered at once."""

    def __init__(
        self,
        block_size: int,
        kv_blocks: int,
        max_step_tokens: int,
        context_length: int,
        adapters: Mapping[str, int] | None = None,
    ) -> None:
        """adapters: numbers of those that the stage has, from 1, by fingerprint."""
        self._block_size = block_size
        self._kv_blocks = kv_blocks
        self._max_step_tokens = max_step_tokens
        self._context_length = context_length
        self._lines: dict[int, int] = {}
        self._free = list(range(_FIRST_ROWS))
        self._tables: Int32Array = np.zeros((_FIRST_ROWS, _FIRST_WIDTH), dtype=np.int32)
        self._lengths: Int32Array = np.zeros(_FIRST_ROWS, dtype=np.int32)
        self._block_counts: Int32Array = np.zeros(_FIRST_ROWS, dtype=np.int32)
        self._numbers = dict(adapters or {})
        self._adapted: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self._lines)

    def apply(self, plan: StepPlan) -> RaggedBatch:
        """Check a plan against what came before, take its changes over, and return the batch to compute.

        A plan that does not fit raises PlanError and changes nothing.
        """
        decode, listed = plan.decode, plan.listed
        keys = [*decode.keys, *[row.key for row in listed]]
        first = _integers([*decode.positions, *[row.first_position for row in listed]], "first_position")
        counts = _integers([*(1,) * len(decode), *[row.count for row in listed]], "count")
        new_counts = _integers([*(0,) * len(decode), *[len(row.new_blocks) for row in listed]], "new_blocks")
        for index, blocks in decode.new_blocks:
            new_counts[index] = len(blocks)
        granted = (*[blocks for _, blocks in decode.new_blocks], *[row.new_blocks for row in listed])
        new_blocks = _integers(list(chain.from_iterable(granted)), "new_blocks")
        self._check_membership(plan, keys)
        self._check_shape(plan, counts, new_blocks)
        started = {start.key for start in plan.starts}
        # A sequence that begins with this plan has no line yet; -1 points at any line and is masked.
        lines = np.array([-1 if key in started else self._lines[key] for key in keys], dtype=np.int64)
        known = lines >= 0
        # It may begin behind whole blocks that were computed for others.
        begins = np.where(first % self._block_size == 0, first, 0)
        if arrived := {start.key: start.begins_at for start in plan.starts if start.begins_at}:
            begins = np.array([arrived.get(key, begin) for key, begin in zip(keys, begins, strict=True)])
        lengths = np.where(known, self._lengths[lines], begins)
        held = np.where(known, self._block_counts[lines], 0)
        self._check_positions(keys, first, counts, lengths, held + new_counts)

        for key in plan.releases:
            self._free.append(self._lines.pop(key))
            self._adapted.pop(key, None)
        for start in plan.starts:
            self._begin(start.key)
            if start.adapter:
                self._adapted[start.key] = self._numbers[start.adapter]
        lines = np.array([self._lines[key] for key in keys], dtype=np.int64)
        self._append(lines, held, new_counts, new_blocks)
        self._lengths[lines] = first + counts
        width = -(-int((first + counts).max(initial=1)) // self._block_size)
        return RaggedBatch(
            first.astype(np.int32),
            counts.astype(np.int32),
            self._tables[lines, :width],
            self._block_size,
            self._adapters_of(keys) if self._adapted else None,
        )

    def set_lengths_for_profiling(self, lengths: dict[int, int]) -> None:
        """Set the lengths of sequences, which must have the blocks for them."""
        for key, length in lengths.items():
            self._lengths[self._lines[key]] = length

    def _check_membership(self, plan: StepPlan, keys: list[int]) -> None:
        released = set(plan.releases)
        if len(released) != len(plan.releases):
            raise PlanError(f"step {plan.step_id} releases a sequence twice")
        for key in plan.releases:
            if key not in self._lines:
                raise PlanError(f"step {plan.step_id} releases unknown sequence {key}")
        started: set[int] = set()
        for start in plan.starts:
            if start.key in started or (start.key in self._lines and start.key not in released):
                raise PlanError(f"step {plan.step_id} starts sequence {start.key}, which runs already")
            if start.adapter and start.adapter not in self._numbers:
                raise PlanError(
                    f"step {plan.step_id} starts sequence {start.key} with adapter {start.adapter[:32]}, "
                    "which this stage does not have"
                )
            started.add(start.key)
        if len(set(keys)) != len(keys):
            raise PlanError(f"step {plan.step_id} has two rows of the same sequence")
        for key in keys:
            if key not in started and (key not in self._lines or key in released):
                raise PlanError(f"step {plan.step_id} has a row of unknown sequence {key}")

    def _check_shape(self, plan: StepPlan, counts: Int64Array, new_blocks: Int64Array) -> None:
        if counts.min(initial=1) < 1:
            raise PlanError(f"step {plan.step_id} has a row without tokens")
        if (tokens := int(counts.sum())) > self._max_step_tokens:
            raise PlanError(f"step {plan.step_id} has {tokens} tokens, the limit is {self._max_step_tokens}")
        if new_blocks.min(initial=0) < 0 or new_blocks.max(initial=-1) >= self._kv_blocks:
            raise PlanError(
                f"step {plan.step_id} names KV blocks {new_blocks.min()} to {new_blocks.max()}, "
                f"the pool has 0 to {self._kv_blocks - 1}"
            )

    def _check_positions(
        self,
        keys: list[int],
        first: Int64Array,
        counts: Int64Array,
        lengths: npt.NDArray[np.integer],
        blocks: npt.NDArray[np.integer],
    ) -> None:
        ends = first + counts
        if blocks.max(initial=0) > self._kv_blocks:
            row = int(blocks.argmax())
            raise PlanError(f"sequence {keys[row]} would have {blocks[row]} of {self._kv_blocks} KV blocks")
        gaps = np.flatnonzero(first != lengths)
        if len(gaps):
            row = gaps[0]
            raise PlanError(
                f"sequence {keys[row]} has {lengths[row]} tokens, the plan goes on at {first[row]}"
            )
        short = np.flatnonzero(ends > blocks * self._block_size)
        if len(short):
            row = short[0]
            raise PlanError(
                f"sequence {keys[row]} would have {ends[row]} tokens in {blocks[row]} "
                f"block(s) of {self._block_size}"
            )
        if ends.max(initial=0) > self._context_length:
            row = int(ends.argmax())
            raise PlanError(
                f"sequence {keys[row]} would have {ends[row]} tokens, "
                f"the model's context is {self._context_length}"
            )

    def _adapters_of(self, keys: list[int]) -> Int32Array | None:
        numbers = np.array([self._adapted.get(key, 0) for key in keys], dtype=np.int32)
        return numbers if numbers.any() else None

    def _begin(self, key: int) -> None:
        if not self._free:
            rows = len(self._lengths)
            self._free = list(range(rows, 2 * rows))
            self._tables = np.concatenate([self._tables, np.zeros_like(self._tables)])
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
            self._block_counts = np.concatenate([self._block_counts, np.zeros_like(self._block_counts)])
        line = self._free.pop()
        self._lines[key] = line
        self._lengths[line] = 0
        self._block_counts[line] = 0
        self._tables[line] = 0

    def _append(
        self,
        lines: Int64Array,
        before: npt.NDArray[np.integer],
        new_counts: Int64Array,
        new_blocks: Int64Array,
    ) -> None:
        """Write new blocks behind those that the sequences have."""
        if not len(new_blocks):
            return
        widest = int((before + new_counts).max())
        if widest > self._tables.shape[1]:
            width = max(widest, 2 * self._tables.shape[1])
            grown: Int32Array = np.zeros((len(self._tables), width), dtype=np.int32)
            grown[:, : self._tables.shape[1]] = self._tables
            self._tables = grown
        row = np.repeat(np.arange(len(lines)), new_counts)
        within = np.arange(len(new_blocks)) - (np.cumsum(new_counts) - new_counts)[row]
        self._tables[lines[row], before[row] + within] = new_blocks
        self._block_counts[lines] = before + new_counts


def _integers(values: list[int], name: str) -> Int64Array:
    try:
        return np.array(values, dtype=np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise PlanError(f"{name} must be integers of 64 bits ({error})") from error
