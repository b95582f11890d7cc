"""What length models talk about: requests, finished answers, predicted lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.types.length_signal import signal_fault

LEVELS: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Levels at which every model answers."""

NO_PROMPT = PromptFeatures()


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """What is known of a request before it runs. Lengths in tokens, None where nobody knows.

    max_tokens: limit of the output. generated_tokens: output that it has already; the prediction is that of
    an answer which is longer. behind_thought: only the part of the output is meant that follows its thought.
    signal: the model's length signal of the prompt (`tidepipe_common/types/length_signal.py`), empty where it
    is not known; model: digest of the model that made it.
    """

    prompt_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    prompt: PromptFeatures = NO_PROMPT
    generated_tokens: int = 0
    behind_thought: bool = False
    signal: bytes = field(default=b"", repr=False)
    model: str = ""

    def fault(self) -> str | None:
        """Why these values cannot belong to a real request, or None."""
        if self.prompt_tokens is not None and self.prompt_tokens < 1:
            return "prompt_tokens must be at least 1"
        if self.max_tokens is not None and self.max_tokens < 1:
            return "max_tokens must be at least 1"
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            return f"temperature must be a finite number >= 0, got {self.temperature}"
        if self.generated_tokens < 0:
            return "generated_tokens must not be negative"
        if (fault := signal_fault(self.signal, self.model)) is not None:
            return fault
        return self.prompt.fault()

    @property
    def limit(self) -> float:
        """max_tokens; infinite where there is none."""
        return math.inf if self.max_tokens is None else float(self.max_tokens)


@dataclass(frozen=True, slots=True)
class Observation:
    """How long an answer was.

    censored: it was cut (max_tokens, cancelled), so `output_tokens` is only a lower bound of its length.
    """

    features: RequestFeatures
    output_tokens: int
    censored: bool

    @property
    def lost(self) -> bool:
        """Cut before its limit (cancelled). Whoever reaches the limit has shown all that callers wait for."""
        return self.censored and self.output_tokens < self.features.limit

    def fault(self) -> str | None:
        """Why this cannot have happened, or None."""
        if (fault := self.features.fault()) is not None:
            return fault
        if self.features.prompt.unlearned:
            return "nothing is to be learned from it"
        limit = self.features.max_tokens
        if limit is not None and self.output_tokens > limit:
            return f"output_tokens ({self.output_tokens}) exceeds max_tokens ({limit})"
        if self.output_tokens < 0:
            return "output_tokens must not be negative"
        return None


@dataclass(frozen=True, slots=True)
class LengthPrediction:
    """Output tokens at each level; neither sequence falls."""

    levels: tuple[float, ...]
    tokens: tuple[float, ...]


class LengthModel(Protocol):
    """A model of output lengths. Whoever trains a better one implements this."""

    @property
    def version(self) -> str:
        """Which model answers now, such as running-quantile/1."""
        ...

    @property
    def window(self) -> int:
        """Observations that the answers rest on."""
        ...

    def predict(self, requests: Sequence[RequestFeatures]) -> list[LengthPrediction]:
        """One prediction per request, none above the request's max_tokens."""
        ...

    def observe(self, observations: Sequence[Observation]) -> None:
        """Learn from finished answers, which the caller has checked."""
        ...
