"""Chooses the next token of each sequence from the logits of the last stage.

The outcome of a row depends on its logits, its parameters and its output index alone: not on the batch,
the process, or what was sampled before a restart (penalties and structures look at the history, which
the plan brings).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stage_worker.executors.protocol import PlanError
from stage_worker.sampling.apart import NotNumbersError, row_error
from stage_worker.sampling.draw import MAX_VOCAB_SIZE, DrawParams, draw, draw_truncated
from stage_worker.sampling.sequence import LogitEdits, SequenceState
from stage_worker.sampling.top import top_tokens
from stage_worker.sampling.uniforms import uniforms
from tidepipe_common.structures.state import Grammars
from tidepipe_common.types.plan import RowError, SampledTokens, SequenceStart
from tidepipe_common.types.sampling import PositionLogprobs, TokenLogprob

_CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 23}
"""Logits drawn from at a time: bounds the memory of the temporaries (some 60 bytes each), and keeps them in a
CPU's cache."""


class Sampler:
    """Samples for the sequences that were started and not yet released. Used from one thread."""

    def __init__(self, vocab_size: int, device: torch.device, grammars: Grammars | None = None) -> None:
        """grammars: None if no sequence will have a structure."""
        if not (1 <= vocab_size <= MAX_VOCAB_SIZE):
            raise ValueError(f"vocab_size must be in [1, {MAX_VOCAB_SIZE}], got {vocab_size}")
        self._vocab_size = vocab_size
        self._device = device
        self._grammars = grammars
        self._sequences: dict[int, SequenceState] = {}

    def start(self, start: SequenceStart) -> None:
        """Begin a sequence, or begin it anew. Raises ValueError if it needs a seed and has none."""
        self._sequences[start.key] = SequenceState(start, self._vocab_size, self._grammars)

    def release(self, key: int) -> None:
        """Forget a sequence. Unknown keys are ignored."""
        self._sequences.pop(key, None)

    def sample(
        self, logits: torch.Tensor, keys: Sequence[int], next_positions: Sequence[int]
    ) -> SampledTokens:
        """Sample one token per row of `logits` (rows x vocabulary); row i belongs to keys[i].

        next_positions[i]: position of the new token in its sequence. If any row wants log-probabilities,
        there is an entry for each row; those of the other rows mean nothing.
        Raises PlanError for unknown sequences, NotNumbersError for logits that are not finite; then nothing
        has changed. A sequence that cannot take its token is among the errors.
        """
        if logits.shape != (len(keys), self._vocab_size) or len(keys) != len(next_positions):
            shape = tuple(logits.shape)
            raise PlanError(f"{len(keys)} keys, {len(next_positions)} positions, but logits of shape {shape}")
        if not keys:
            return SampledTokens(())
        states = [self._state(key) for key in keys]
        indices = [
            state.output_index(key, position)
            for state, key, position in zip(states, keys, next_positions, strict=True)
        ]
        values = logits.detach().to(self._device, torch.float32).contiguous()
        if all(state.simple for state in states):
            # One pass: the logit that argmax finds is the greatest, or the first NaN.
            token_ids = _argmax(values)
            _check_finite(values[list(range(len(keys))), token_ids], keys)
            return SampledTokens(tuple(token_ids))
        best = values.amax(-1)
        _check_finite(best, keys)
        wanting = [row for row, state in enumerate(states) if state.params.logprobs is not None]
        log_probabilities = _rows(values, wanting).log_softmax(-1) if wanting else None
        edits = LogitEdits(states, indices, self._vocab_size)
        if edits:
            if values.data_ptr() == logits.data_ptr():
                values = values.clone()
            edits.apply(values)
            best = values.amax(-1)
            _check_finite(best, keys)
        token_ids = self._choose(values, best, states, indices)
        logprobs: tuple[PositionLogprobs, ...] = ()
        if log_probabilities is not None:
            logprobs = _logprobs(log_probabilities, wanting, states, token_ids)
        return SampledTokens(tuple(token_ids), logprobs, _append(keys, states, token_ids))

    def _state(self, key: int) -> SequenceState:
        state = self._sequences.get(key)
        if state is None:
            raise PlanError(f"sequence {key} was not started")
        return state

    def _choose(
        self,
        values: torch.Tensor,
        best: torch.Tensor,
        states: Sequence[SequenceState],
        indices: Sequence[int],
    ) -> list[int]:
        greedy, plain, truncated = [], [], []
        for row, state in enumerate(states):
            params = state.params
            if params.greedy:
                greedy.append(row)
            elif params.top_p < 1.0 or 0 < params.top_k < self._vocab_size:
                truncated.append(row)
            else:
                plain.append(row)
        chosen = [0] * len(states)
        for row, token_id in zip(greedy, _argmax(_rows(values, greedy)) if greedy else (), strict=True):
            chosen[row] = token_id
        chunk = max(1, _CHUNK_ELEMENTS.get(self._device.type, 1 << 19) // self._vocab_size)
        for group, how in ((plain, draw), (truncated, draw_truncated)):
            for first in range(0, len(group), chunk):
                rows = group[first : first + chunk]
                params_of_rows = self._draw_params(
                    [states[row] for row in rows], [indices[row] for row in rows]
                )
                drawn = how(_rows(values, rows), _rows(best, rows), params_of_rows).tolist()
                for row, token_id in zip(rows, drawn, strict=True):
                    chosen[row] = token_id
        return chosen

    def _draw_params(self, states: Sequence[SequenceState], indices: Sequence[int]) -> DrawParams:
        params = [state.params for state in states]
        doubles = torch.tensor(
            [[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]],
            dtype=torch.float64,
        ).to(self._device)
        top_k = torch.tensor([min(p.top_k or self._vocab_size, self._vocab_size) for p in params])
        uniform = torch.from_numpy(uniforms([state.seed for state in states], indices))
        return DrawParams(
            temperature=doubles[0].float(),
            top_k=top_k.to(self._device),
            top_p=doubles[1],
            min_p=doubles[2],
            uniform=uniform.to(self._device),
        )


def _append(
    keys: Sequence[int], states: Sequence[SequenceState], token_ids: Sequence[int]
) -> tuple[RowError, ...]:
    """Let each take note of its token; those that could not. Last of all: what raises changes none."""
    errors = []
    for key, state, token_id in zip(keys, states, token_ids, strict=True):
        try:
            state.append(token_id)
        except Exception as error:
            errors.append(row_error(key, error))
    return tuple(errors)


def _check_finite(best: torch.Tensor, keys: Sequence[int]) -> None:
    # The greatest logit of a row shows NaN (it propagates), +inf, and a row of -inf only.
    finite = best.isfinite().tolist()
    if not all(finite):
        bad = [key for key, good in zip(keys, finite, strict=True) if not good]
        raise NotNumbersError("the scores of the next token", bad)


def _argmax(values: torch.Tensor) -> list[int]:
    # numpy's argmax is vectorised, torch's on CPU is not: 13 times faster. Both take the first of equals, and
    # the first NaN before any number.
    if values.device.type == "cpu":
        return [int(token_id) for token_id in values.numpy().argmax(-1)]
    return [int(token_id) for token_id in values.argmax(-1).tolist()]


def _rows(values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The given rows, ascending; a view where they are neighbours."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return values[rows[0] : rows[-1] + 1]
    return values[list(rows)]


def _logprobs(
    log_probabilities: torch.Tensor,
    wanting: Sequence[int],
    states: Sequence[SequenceState],
    token_ids: Sequence[int],
) -> tuple[PositionLogprobs, ...]:
    chosen_ids = torch.tensor([[token_ids[row]] for row in wanting], device=log_probabilities.device)
    chosen = log_probabilities.gather(1, chosen_ids).squeeze(1).tolist()
    counts = [states[row].params.logprobs or 0 for row in wanting]
    top, top_ids = (
        top_tokens(log_probabilities) if any(counts) else (log_probabilities[:, :0], chosen_ids[:, :0])
    )
    result = [PositionLogprobs(TokenLogprob(token_id, 0.0)) for token_id in token_ids]
    for row, count, logprob, values, ids in zip(
        wanting, counts, chosen, top.tolist(), top_ids.tolist(), strict=True
    ):
        best = tuple(TokenLogprob(i, value) for i, value in zip(ids[:count], values[:count], strict=True))
        result[row] = PositionLogprobs(TokenLogprob(token_ids[row], logprob), best)
    return tuple(result)
