"""What the sampler remembers of one sequence, and how it therefore changes the logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from stage_worker.executors.protocol import PlanError
from tidepipe_common.structures.state import Allowed, Grammars, GrammarState
from tidepipe_common.structures.thought import ThoughtState
from tidepipe_common.types.plan import SequenceStart
from tidepipe_common.types.sampling import SamplingParams

_Ids = npt.NDArray[np.int64]
_Values = npt.NDArray[np.float32]


class TokenCounts:
    """The distinct tokens that penalties look at, and how often each stands in the output."""

    def __init__(self, prompt: Iterable[int], output: Iterable[int]) -> None:
        self._slots: dict[int, int] = {}
        self._ids: _Ids = np.zeros(64, np.int64)
        self._counts: _Values = np.zeros(64, np.float32)
        for token_id in prompt:
            self._slot(token_id)
        for token_id in output:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Count one more output token."""
        slot = self._slot(token_id)  # first: it may replace the array by a larger one
        self._counts[slot] += 1

    @property
    def ids(self) -> _Ids:
        """Distinct token ids."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> _Values:
        """Occurrences in the output, in the order of `ids`; zero for tokens of the prompt alone."""
        return self._counts[: len(self._slots)]

    def _slot(self, token_id: int) -> int:
        slot = self._slots.get(token_id)
        if slot is None:
            slot = self._slots[token_id] = len(self._slots)
            if slot == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[slot] = token_id
        return slot


class SequenceState:
    """A sequence's parameters and, if a penalty, a structure or a bounded thought needs it, its history."""

    def __init__(self, start: SequenceStart, vocab_size: int, grammars: Grammars | None = None) -> None:
        params = start.sampling
        if params.seed is None and not params.greedy:
            raise ValueError(f"sequence {start.key} is sampled at random but has no seed")
        if start.history and (min(start.history) < 0 or max(start.history) >= vocab_size):
            raise PlanError(f"history of sequence {start.key} has token ids outside the vocabulary")
        self.params: SamplingParams = params
        self.seed = params.seed or 0
        self.prompt_tokens = start.prompt_tokens
        # Ids that the model does not have can never be sampled: to bias or mask them changes nothing.
        bias = {i: value for i, value in params.logit_bias.items() if 0 <= i < vocab_size}
        self.bias_ids: _Ids = np.array(list(bias), dtype=np.int64)
        self.bias_values: _Values = np.array(list(bias.values()), dtype=np.float32)
        ends = {i for i in (*start.eos_token_ids, *params.stop_token_ids) if 0 <= i < vocab_size}
        # A request that names all tokens as stops must get some token nevertheless.
        self.end_ids: _Ids = np.array(sorted(ends) if len(ends) < vocab_size else [], dtype=np.int64)
        self.counts: TokenCounts | None = None
        self._tokens = len(start.history)
        if params.penalized:
            # The prompt counts for the repetition penalty only.
            repetition = params.repetition_penalty != 1.0
            prompt = start.history[: start.prompt_tokens] if repetition else ()
            self.counts = TokenCounts(prompt, start.history[start.prompt_tokens :])
        self.simple = self.counts is None and not bias and params.logprobs is None and params.greedy
        if params.min_tokens and len(self.end_ids):
            self.simple = False
        self.grammar: GrammarState | None = None
        if params.structure is not None:
            if grammars is None:
                raise ValueError(f"sequence {start.key} has a structure, which this worker cannot keep to")
            output = start.history[start.prompt_tokens :]
            self.grammar = grammars.state(params.structure, start.eos_token_ids, output)
            self.simple = False
        self.thought: ThoughtState | None = None
        if params.thought is not None and params.max_reasoning_tokens is not None:
            output = start.history[start.prompt_tokens :]
            self.thought = ThoughtState(params.thought, params.max_reasoning_tokens, output)
            self.simple = False
        self._follows_history = params.needs_history

    def output_index(self, key: int, next_position: int) -> int:
        """Index of the output token at `next_position`."""
        index = next_position - self.prompt_tokens
        if index < 0:
            raise PlanError(f"sequence {key} samples position {next_position} inside its prompt")
        if self._follows_history and next_position != self._tokens:
            raise PlanError(
                f"sequence {key} samples position {next_position}, but its history ends at {self._tokens}"
            )
        return index

    def append(self, token_id: int) -> None:
        """Take note of a token that was sampled."""
        if not self._follows_history:
            return
        self._tokens += 1
        if self.counts is not None:
            self.counts.add(token_id)
        if self.grammar is not None:
            self.grammar.append(token_id)
        if self.thought is not None:
            self.thought.append(token_id)

    def masked_ids(self, output_index: int) -> _Ids:
        """Tokens that must not be sampled at `output_index`."""
        return self.end_ids if output_index < self.params.min_tokens else self.end_ids[:0]


class LogitEdits:
    """Changes of a batch's logits: bias, then penalties, then masks."""

    def __init__(
        self, states: Sequence[SequenceState], output_indices: Sequence[int], vocab_size: int
    ) -> None:
        self._vocab_size = vocab_size
        self._bias: list[tuple[int, _Ids, _Values]] = []
        self._penalties: list[tuple[int, _Ids, _Values]] = []
        self._masks: list[tuple[int, _Ids]] = []
        self._structures: list[tuple[int, Allowed]] = []
        self._forced: list[tuple[int, int]] = []
        for row, (state, index) in enumerate(zip(states, output_indices, strict=True)):
            if len(state.bias_ids):
                self._bias.append((row, state.bias_ids, state.bias_values))
            if state.counts is not None and len(state.counts.ids):
                params, counts = state.params, state.counts.counts
                subtrahend = params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
                factor = np.full(len(counts), params.repetition_penalty)
                columns = np.stack([factor, subtrahend]).astype(np.float32)
                self._penalties.append((row, state.counts.ids, columns))
            masked = state.masked_ids(index)
            if state.grammar is not None:
                ends, theirs = state.end_ids.tolist(), bool(state.params.stop_token_ids)
                allowed = state.grammar.allowed_besides(ends, named_by_client=theirs)
                self._structures.append((row, allowed))
                masked = masked[:0]  # the structure says when the output may end
            if state.thought is not None:
                forced = state.thought.forced
                if forced is not None and forced < vocab_size and (state.grammar is None or allowed[forced]):
                    self._forced.append((row, forced))
                    continue
                if (barred := state.thought.barred) is not None and barred < vocab_size:
                    masked = np.append(masked, barred)
            if len(masked):
                self._masks.append((row, masked))

    def __bool__(self) -> bool:
        return bool(self._bias or self._penalties or self._masks or self._structures or self._forced)

    def apply(self, logits: torch.Tensor) -> None:
        """Change contiguous float32 `logits` in place."""
        flat = logits.view(-1)
        if self._bias:
            where = self._flat([(row, ids) for row, ids, _ in self._bias], logits.device)
            bias = np.concatenate([values for *_, values in self._bias])
            flat[where] += torch.from_numpy(bias).to(logits.device)
        if self._penalties:
            where = self._flat([(row, ids) for row, ids, _ in self._penalties], logits.device)
            columns = np.concatenate([values for *_, values in self._penalties], axis=1)
            factor, subtrahend = torch.from_numpy(columns).to(logits.device)
            values = flat[where]
            values = torch.where(values > 0, values / factor, values * factor) - subtrahend
            # A tiny penalty must not turn a likely token into an infinitely likely one.
            flat[where] = values.clamp_(max=torch.finfo(values.dtype).max)
        for row, allowed in self._structures:
            logits[row].masked_fill_(~torch.from_numpy(allowed).to(logits.device), -torch.inf)
        if self._masks:
            flat[self._flat(self._masks, logits.device)] = -torch.inf
        for row, token_id in self._forced:
            logits[row] = -torch.inf
            logits[row, token_id] = 0.0

    def _flat(self, rows: Sequence[tuple[int, _Ids]], device: torch.device) -> torch.Tensor:
        places = np.concatenate([ids + row * self._vocab_size for row, ids in rows])
        return torch.from_numpy(places).to(device)
