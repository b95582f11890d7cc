"""What is read off prompts at the last stage: how likely their tokens were, and vectors of their states.

The next token needs the last position of a prompt alone; these need all of them, as they pass by: a step has
a piece of a prompt, and nothing keeps its hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from stage_worker.attention.batch import RaggedBatch
from stage_worker.sampling.apart import NotNumbersError, row_error
from stage_worker.sampling.top import top_tokens
from tidepipe_common.limits import MAX_LOGPROBS
from tidepipe_common.types.plan import RowError, SequenceStart, StepPlan
from tidepipe_common.types.prompt_reading import PromptLogprobs, PromptPiece
from tidepipe_common.types.sampling import Pooling

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Logits made at a time: with those beside them, some 50 MB on a CPU. A prompt's would be gigabytes."""


class StateReader(Protocol):
    """What a prompt is read with; `stage_worker.models.decoder.Decoder`."""

    def logits(self, residual: torch.Tensor) -> torch.Tensor:
        """Scores of the next token for rows [rows, hidden]: float32 [rows, vocabulary]."""
        ...

    def states(self, residual: torch.Tensor) -> torch.Tensor:
        """The same rows behind the final norm."""
        ...


@dataclass(slots=True)
class _Prompt:
    """One that is read. history: its tokens. total: of the states so far; computed: how many these are."""

    start: SequenceStart
    total: torch.Tensor | None = None
    computed: int = 0


class PromptReader:
    """For the sequences that were started and whose prompts were not read to their ends. Of one thread."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._prompts: dict[int, _Prompt] = {}

    def start(self, start: SequenceStart) -> None:
        """Begin a sequence, or begin it anew."""
        if start.sampling.reads_prompt:
            self._prompts[start.key] = _Prompt(start)
        else:
            self._prompts.pop(start.key, None)

    def release(self, key: int) -> None:
        """Forget a sequence."""
        self._prompts.pop(key, None)

    def read(
        self, plan: StepPlan, batch: RaggedBatch, residual: torch.Tensor, model: StateReader
    ) -> tuple[tuple[PromptPiece, ...], tuple[RowError, ...]]:
        """What this step says of prompts, and whose numbers are none. residual: of all its tokens."""
        if not self._prompts:
            return (), ()
        pieces, errors = [], []
        for (key, first, count), offset in zip(_rows(plan), batch.offsets.tolist(), strict=False):
            prompt = self._prompts.get(key)
            if prompt is None:
                continue
            # Behind its prompt a sequence that goes on has output.
            count = min(count, prompt.start.prompt_tokens - first)
            if count <= 0:
                del self._prompts[key]
                continue
            try:
                pieces.append(self._piece(prompt, first, residual[offset : offset + count], model))
            except (NotNumbersError, _NotComputedError) as error:
                del self._prompts[key]
                errors.append(row_error(key, error))
                continue
            if first + count >= prompt.start.prompt_tokens:
                del self._prompts[key]
        return tuple(pieces), tuple(errors)

    def _piece(self, prompt: _Prompt, first: int, rows: torch.Tensor, model: StateReader) -> PromptPiece:
        params, start = prompt.start.sampling, prompt.start
        read: PromptLogprobs | None = None
        vector = b""
        if params.prompt_logprobs is not None:
            targets = start.history[first + 1 : min(first + len(rows) + 1, start.prompt_tokens)]
            top = min(params.prompt_logprobs, MAX_LOGPROBS, self._vocab_size)
            if targets:
                read = self._logprobs(first + 1, targets, rows[: len(targets)], top, model)
        if params.pooling is not None:
            vector = _pool(prompt, params.pooling, first, rows, model)
        return PromptPiece(start.key, first, len(rows), read, vector)

    def _logprobs(
        self, first: int, targets: tuple[int, ...], rows: torch.Tensor, top: int, model: StateReader
    ) -> PromptLogprobs:
        chunk = max(1, CHUNK_ELEMENTS.get(rows.device.type, 1 << 22) // self._vocab_size)
        own = torch.tensor(targets, device=rows.device).unsqueeze(1)
        ids, values, ranks = [], [], []
        for begin in range(0, len(targets), chunk):
            logits = model.logits(rows[begin : begin + chunk])
            likely = logits.log_softmax(-1)
            chosen = own[begin : begin + chunk]
            _, best_ids = top_tokens(logits, top)
            ids.append(torch.cat([chosen, best_ids], dim=1))
            values.append(likely.gather(1, ids[-1]))
            if bool(values[-1].isnan().any()):  # as an infinite score makes them, too
                raise NotNumbersError("the log-probabilities of the prompt")
            ranks.append(1 + (logits > logits.gather(1, chosen)).sum(-1))
        return PromptLogprobs(
            first,
            top,
            _column(torch.cat(ids), "<u4"),
            _column(torch.cat(values), "<f4"),
            _column(torch.cat(ranks), "<u4"),
        )


class _NotComputedError(Exception):
    """A part of a prompt was not read."""


def _rows(plan: StepPlan) -> Iterator[tuple[int, int, int]]:
    """Key, first position and count of each."""
    for key, position in zip(plan.decode.keys, plan.decode.positions, strict=True):
        yield key, position, 1
    for row in plan.listed:
        yield row.key, row.first_position, row.count


def _pool(prompt: _Prompt, how: Pooling, first: int, rows: torch.Tensor, model: StateReader) -> bytes:
    """The vector, with the prompt's end; nothing before."""
    ends = first + len(rows) >= prompt.start.prompt_tokens
    if how is Pooling.MEAN:
        # In double precision: what is added up does not depend on where the steps cut the prompt.
        added = model.states(rows).double().sum(0)
        prompt.total = added if prompt.total is None else prompt.total + added
    elif how is Pooling.CLS and first == 0:
        prompt.total = model.states(rows[:1])[0].double()
    elif how is Pooling.LAST and ends:
        prompt.total = model.states(rows[-1:])[0].double()
    prompt.computed += len(rows)
    if not ends:
        return b""
    if prompt.total is None or (how.begins and prompt.computed != prompt.start.prompt_tokens):
        raise _NotComputedError("a part of its prompt was not computed, so there is no vector of it")
    vector = prompt.total / (prompt.computed if how is Pooling.MEAN else 1)
    if not bool(torch.isfinite(vector).all()):
        raise NotNumbersError("the numbers of the prompt's vector")
    return _column(vector, "<f4")


def _column(values: torch.Tensor, kind: str) -> bytes:
    return np.ascontiguousarray(values.cpu().numpy(), dtype=kind).tobytes()
