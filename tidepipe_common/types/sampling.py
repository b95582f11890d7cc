"""Sampling parameters of a request, and reasons for the end of its output (domain types, no protobuf)."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import (
    MAX_ANSWERS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_STOP_STRING_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    check_count,
)
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.thought import ThoughtMarks


class FinishReason(enum.Enum):
    """Why an output ended; the values are the OpenAI API's where it has one."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"

    @property
    def whole(self) -> bool:
        """True if the output ended as asked for; any other one was cut."""
        return self in (FinishReason.STOP, FinishReason.LENGTH)


class Pooling(enum.Enum):
    """How the hidden states of a prompt become one vector."""

    MEAN = "mean"
    LAST = "last"
    CLS = "cls"
    """The first token's."""

    @property
    def begins(self) -> bool:
        """True if it needs the states of the prompt's beginning, which nobody keeps."""
        return self is not Pooling.LAST


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability (before temperature and penalties)."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log-probabilities of one output position: the chosen token and the most likely ones, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of one request's sampling, and what is wanted of its prompt.

    prompt_logprobs: of each token of the prompt, and of so many most likely ones. pooling: its vector.

    Applied in this order: logit bias, repetition / presence / frequency penalties, structure and min_tokens
    masks, the end of a thought, temperature, top-k, top-p, min-p, draw. `temperature` 0 is greedy.
    max_reasoning_tokens: of a thought. thought: where it ends, which routers add where there may be one.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    structure: Structure | None = None
    max_reasoning_tokens: int | None = None
    thought: ThoughtMarks | None = None
    prompt_logprobs: int | None = None
    pooling: Pooling | None = None

    @property
    def reads_prompt(self) -> bool:
        """True if something is wanted of the prompt itself."""
        return self.prompt_logprobs is not None or self.pooling is not None

    @property
    def needs_whole_prompt(self) -> bool:
        """True if all of the prompt must be computed for it: states of what was computed before are gone."""
        return self.prompt_logprobs is not None or (self.pooling is not None and self.pooling.begins)

    @property
    def greedy(self) -> bool:
        """True if no randomness is involved."""
        return self.temperature == 0.0

    @property
    def needs_history(self) -> bool:
        """True if the sampler must know the tokens so far: for a penalty, a structure, a bounded thought."""
        return self.structure is not None or self.thought_bounded or self.penalized

    @property
    def thought_bounded(self) -> bool:
        """True if a thought is to be ended where it has become too long."""
        return self.thought is not None and self.max_reasoning_tokens is not None

    @property
    def penalized(self) -> bool:
        """True if a penalty looks at the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def check(self) -> None:
        """Raise InvalidRequestError for values that make no sense for any model."""
        _within("temperature", self.temperature, 0.0, 100.0)
        _at_least("top_k", self.top_k, 0)
        if not (0.0 < self.top_p <= 1.0):
            raise InvalidRequestError(f"top_p must be in (0, 1], got {self.top_p}", "top_p")
        _within("min_p", self.min_p, 0.0, 1.0)
        if not (0.0 < self.repetition_penalty <= 100.0):
            raise InvalidRequestError(
                f"repetition_penalty must be in (0, 100], got {self.repetition_penalty}",
                "repetition_penalty",
            )
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None and not (0 <= self.seed < 2**64):
            raise InvalidRequestError(f"seed must be in [-2^63, 2^64), got {self.seed}", "seed")
        check_count("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS)
        check_count("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)
        for token_id, bias in self.logit_bias.items():
            _within(f"logit_bias[{token_id}]", bias, -100.0, 100.0, "logit_bias")
        if self.max_tokens is not None:
            _at_least("max_tokens", self.max_tokens, 0 if self.reads_prompt else 1)
            if not self.max_tokens and self.n != 1:
                raise InvalidRequestError(f"n must be 1 with max_tokens 0, got {self.n}", "n")
        _at_least("min_tokens", self.min_tokens, 0)
        if self.max_reasoning_tokens is not None:
            _at_least("max_reasoning_tokens", self.max_reasoning_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})",
                "min_tokens",
            )
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"at most {MAX_STOP_STRINGS} stop strings are allowed, got {len(self.stop)}", "stop"
            )
        for text in self.stop:
            if not text:
                raise InvalidRequestError("a stop string must not be empty", "stop")
            if len(text) > MAX_STOP_STRING_CHARACTERS:
                raise InvalidRequestError(
                    f"a stop string may have {MAX_STOP_STRING_CHARACTERS} characters, got {len(text)}",
                    "stop",
                )
        if self.logprobs is not None and not (0 <= self.logprobs <= MAX_LOGPROBS):
            raise InvalidRequestError(
                f"logprobs must be in [0, {MAX_LOGPROBS}], got {self.logprobs}", "logprobs"
            )
        if self.prompt_logprobs is not None and not (0 <= self.prompt_logprobs <= MAX_LOGPROBS):
            raise InvalidRequestError(
                f"prompt_logprobs must be in [0, {MAX_LOGPROBS}], got {self.prompt_logprobs}",
                "prompt_logprobs",
            )
        if not (1 <= self.n <= MAX_ANSWERS):
            raise InvalidRequestError(f"n must be in [1, {MAX_ANSWERS}], got {self.n}", "n")
        if self.structure is not None:
            self._check_structure(self.structure)

    def _check_structure(self, structure: Structure) -> None:
        structure.check()
        if structure.kind == "regex" and self.stop:
            raise InvalidRequestError(
                "stop strings would cut a regular expression or a choice short; end the expression there",
                "stop",
            )
        if self.min_tokens:
            raise InvalidRequestError(
                f"min_tokens and {structure.field} contradict each other: a finished structure must end",
                "min_tokens",
            )
        if self.ignore_eos:
            raise InvalidRequestError(
                f"ignore_eos and {structure.field} contradict each other: a finished structure must end",
                "ignore_eos",
            )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InvalidRequestError if a token id that it names is not one of the model's."""
        for name, ids in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            for token_id in ids:
                if not (0 <= token_id < vocab_size):
                    raise InvalidRequestError(
                        f"{name} names token id {token_id}, but the vocabulary ends at {vocab_size - 1}",
                        name,
                    )


def unsigned_seed(seed: int | None) -> int | None:
    """A seed as it is kept, in [0, 2^64). OpenAI's are signed: those in [-2^63, 0) mean the same 64 bits."""
    return seed + 2**64 if seed is not None and -(2**63) <= seed < 0 else seed


def _within(name: str, value: float, low: float, high: float, param: str | None = None) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequestError(f"{name} must be in [{low:g}, {high:g}], got {value}", param or name)


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise InvalidRequestError(f"{name} must be at least {low}, got {value}", name)
