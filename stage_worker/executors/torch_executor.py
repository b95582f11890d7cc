"""The executor of one stage's steps with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import numpy as np
import torch

from stage_worker.attention.batch import Int64Array, RaggedBatch
from stage_worker.device_copies import copies_for
from stage_worker.executors.decode_graphs import DecodeGraphs
from stage_worker.executors.protocol import (
    KvAccess,
    OffloadError,
    OffloadSlots,
    PlanError,
    StageSpec,
    StepOutput,
)
from stage_worker.executors.torch_sequences import SequenceTables
from stage_worker.fabric.neighbours import NO_WAYS, FabricWays
from stage_worker.kv_pool import KvPool
from stage_worker.models.adapters import NO_ADAPTERS, StageAdapters
from stage_worker.models.spec import ModelSpec
from stage_worker.priority import compute_as_batch_work
from stage_worker.sampling.apart import ApartSampler, StepSampler
from stage_worker.sampling.prompt_reader import PromptReader
from stage_worker.sampling.signal_reader import SignalReader
from stage_worker.second_tier import BlockMover
from tidepipe_common.types.length_signal import LengthSignal
from tidepipe_common.types.plan import BlockCopies, SampledTokens, StepPlan


class StageDecoder(Protocol):
    """The layers of one stage, over packed rows without padding."""

    @property
    def width_in(self) -> int:
        """Values of a token that the stage before hands on."""
        ...

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [tokens] -> what `forward` begins with (first stage only)."""
        ...

    def forward(self, batch: RaggedBatch, residual: torch.Tensor) -> torch.Tensor:
        """Run the stage's layers; the residual stream [tokens, hidden], which may be overwritten."""
        ...

    def logits(self, residual: torch.Tensor) -> torch.Tensor:
        """Scores of the next token for rows [rows, hidden]: float32 [rows, vocabulary] (last stage only)."""
        ...

    def states(self, residual: torch.Tensor) -> torch.Tensor:
        """The hidden states that a model ends with, of rows [rows, hidden] (last stage only)."""
        ...


@dataclass(frozen=True, slots=True)
class StageParts:
    """What an executor runs on.

    weight_bytes: of the loaded weights. sampler: on the last stage. graphs: for decode steps, on a GPU.
    ways: to the neighbours, by fabric.
    mover: to and from the second tier. lose_tier: called when that does not work any more.
    adapters: that sequences may have. kv: its blocks, for other instances' stages.
    """

    stage: StageSpec
    model: ModelSpec
    decoder: StageDecoder
    pool: KvPool
    weight_bytes: int
    device: torch.device
    dtype: torch.dtype
    sampler: StepSampler | None
    graphs: DecodeGraphs | None = None
    ways: FabricWays = NO_WAYS
    mover: BlockMover | None = None
    lose_tier: Callable[[], None] = lambda: None
    adapters: StageAdapters = NO_ADAPTERS
    kv: KvAccess | None = None


class TorchExecutor:
    """One stage in one epoch; implements `Executor`."""

    def __init__(self, parts: StageParts) -> None:
        self.kv_blocks = parts.pool.blocks
        self.weight_bytes = parts.weight_bytes + parts.adapters.nbytes
        self.kv_bytes = parts.pool.nbytes
        self._stage = parts.stage
        self._decoder = parts.decoder
        self._graphs = parts.graphs
        self._device = parts.device
        self._copies = copies_for(parts.device)
        self._dtype = parts.dtype
        self.width_in = parts.decoder.width_in
        self._vocab_size = parts.model.vocab_size
        self._sampler = None if parts.sampler is None else ApartSampler(parts.sampler)
        self._reader = PromptReader(parts.model.vocab_size)
        self._signals = SignalReader()
        self._pool = parts.pool
        self._ways = parts.ways
        self._settled = False
        self._mover = parts.mover
        self._lose_tier = parts.lose_tier
        self.kv = parts.kv
        self._sequences = SequenceTables(
            parts.stage.block_size,
            parts.pool.blocks,
            parts.stage.max_step_tokens,
            parts.model.context_length,
            parts.adapters.numbers,
        )

    @property
    def graph_rows(self) -> list[int]:
        """Rows of the decode steps that run as CUDA graphs; none on a CPU."""
        return [] if self._graphs is None else self._graphs.sizes

    @torch.inference_mode()
    def execute(self, plan: StepPlan, hidden: bytes | memoryview | None) -> StepOutput:
        """Run one step, see `Executor`."""
        if not self._settled:
            compute_as_batch_work()
            if self._device.type == "cuda":
                # Of this thread: graphs and libraries use the present device's stream.
                torch.cuda.set_device(self._device)
            self._settled = True
        token_ids = self._token_ids(plan) if self._stage.first else None
        if not self._stage.first:
            self._check_hidden(plan, hidden)
        batch = self._sequences.apply(plan)
        self._pool.progress.begin(plan.step_id)
        if plan.copies:
            self._copy_blocks(plan.copies)
        if self._sampler is not None:
            _forward_changes(plan, self._sampler)
            _forward_changes(plan, self._reader)
            _forward_changes(plan, self._signals)
        if not plan.tokens:
            if self._sampler is None:
                return StepOutput(hidden=b"")
            return StepOutput(sampled=self._sampler.tell(SampledTokens(())))
        if token_ids is not None:
            residual = self._decoder.embed(self._copies.upload("token_ids", token_ids))
        else:
            residual = self._received(hidden or b"", plan.tokens)
        residual = self._forward(batch, residual)
        if self._sampler is None:
            return StepOutput(hidden=self._handed_on(residual))
        pieces, errors = self._reader.read(plan, batch, residual, self._decoder)
        sampled = self._sample(self._sampler, plan, batch, residual)
        if pieces or errors:
            sampled = replace(sampled, errors=(*sampled.errors, *errors), prompts=pieces)
        return StepOutput(sampled=sampled)

    @property
    def offload(self) -> OffloadSlots:
        """See Executor."""
        mover = self._mover
        return (
            OffloadSlots() if mover is None else OffloadSlots(mover.slots, mover.block_s, mover.step_blocks)
        )

    def close(self) -> None:
        """Wait for no neighbour any more."""
        self._ways.close()

    def _copy_blocks(self, copies: BlockCopies) -> None:
        if self._mover is None:
            raise PlanError("the plan has copies, but this stage has no second tier")
        try:
            self._mover.execute(copies)
        except OffloadError:
            self._lose_tier()
            raise

    def set_lengths_for_profiling(self, lengths: dict[int, int]) -> None:
        """As if these sequences had so many tokens, whatever their blocks hold: to measure steps."""
        self._sequences.set_lengths_for_profiling(lengths)

    def prefault_pool(self) -> None:
        """Make all of the KV pool's memory resident, as it is when the pool is in use."""
        self._pool.occupy()

    def _forward(self, batch: RaggedBatch, residual: torch.Tensor) -> torch.Tensor:
        graphs = self._graphs if batch.adapters is None else None  # they were captured without
        if graphs is not None and (replayed := graphs.forward(batch, residual)) is not None:
            return replayed
        return self._decoder.forward(batch, residual)

    def _sample(
        self, sampler: ApartSampler, plan: StepPlan, batch: RaggedBatch, residual: torch.Tensor
    ) -> SampledTokens:
        decode, listed = plan.decode, plan.listed
        samples = [row.sample for row in listed]
        chosen = np.concatenate([np.arange(len(decode)), len(decode) + np.flatnonzero(samples)])
        if not len(chosen):
            # Else the step would seem to be done, and the next one seem to take the time of both.
            self._copies.finish()
            return SampledTokens(())
        last_tokens: Int64Array = batch.offsets[chosen + 1].astype(np.int64) - 1
        if len(last_tokens) != len(residual):
            residual = residual[self._copies.upload("last_tokens", last_tokens)]
        keys = [*decode.keys, *[row.key for row in listed if row.sample]]
        positions = batch.contexts[chosen].tolist()
        logits = self._decoder.logits(residual)
        due = self._signals.due(keys, positions)
        signals = self._read_signals(due, keys, residual, logits) if due else ()
        sampled = sampler.tell(sampler.sample(logits, keys, positions))
        return replace(sampled, signals=signals) if signals else sampled

    def _read_signals(
        self, due: list[int], keys: list[int], residual: torch.Tensor, logits: torch.Tensor
    ) -> tuple[LengthSignal, ...]:
        rows = self._copies.upload("signal_rows", np.array(due, dtype=np.int64))
        states = self._decoder.states(residual[rows])
        return tuple(self._signals.read([keys[row] for row in due], states, logits[rows]))

    def _token_ids(self, plan: StepPlan) -> Int64Array:
        """The tokens of all rows, one behind the other."""
        decode, listed = plan.decode, plan.listed
        if len(decode.token_ids) != len(decode):
            raise PlanError(f"{len(decode)} decode rows have {len(decode.token_ids)} token ids")
        for row in listed:
            if len(row.token_ids) != row.count:
                raise PlanError(
                    f"sequence {row.key} has {len(row.token_ids)} token ids for {row.count} positions"
                )
        try:
            tokens = chain(decode.token_ids, *[row.token_ids for row in listed])
            ids = np.fromiter(tokens, dtype=np.int64)
        except (OverflowError, TypeError, ValueError) as error:
            raise PlanError(f"step {plan.step_id} has token ids that are not integers ({error})") from error
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= self._vocab_size:
            raise PlanError(
                f"step {plan.step_id} has token ids from {ids.min()} to {ids.max()}, "
                f"the vocabulary is 0 to {self._vocab_size - 1}"
            )
        return ids

    def _check_hidden(self, plan: StepPlan, hidden: bytes | memoryview | None) -> None:
        by_fabric = self._ways.before is not None
        expected = 0 if by_fabric else plan.tokens * self.width_in * self._dtype.itemsize
        got = memoryview(hidden or b"").nbytes
        if got != expected:
            raise PlanError(
                f"step {plan.step_id} came with {got} bytes of activations, "
                f"its {plan.tokens} tokens need {expected}"
            )

    def _handed_on(self, residual: torch.Tensor) -> bytes | memoryview:
        """The activations' bytes; none if they are on their way to the next device. Waits for the result."""
        if self._ways.after is None:
            return self._copies.download(residual)
        self._ways.after.send(residual)
        self._copies.finish()
        return b""

    def _received(self, hidden: bytes | memoryview, tokens: int) -> torch.Tensor:
        """Activations of the stage before, [tokens, width], in memory that the layers may write to."""
        if self._ways.before is not None:
            return self._ways.before.receive((tokens, self.width_in), self._dtype)
        return self._copies.received(hidden).view(self._dtype).view(-1, self.width_in)


def _forward_changes(plan: StepPlan, to: ApartSampler | PromptReader | SignalReader) -> None:
    for key in plan.releases:
        to.release(key)
    for start in plan.starts:
        to.start(start)
