"""What instances and links know of a sequence, and what they tell it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tidepipe_common.errors import TidePipeError
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams


@dataclass(frozen=True, slots=True)
class SequenceNews:
    """New output of a sequence. token_offset: its output tokens before these.

    stop_token_id: the token that ended it, not among token_ids. preemptions: in its present stay so far.
    fault: with an error, the field of the request that is at fault, or empty; None: it is not the request's.
    """

    token_offset: int
    token_ids: Sequence[int]
    logprobs: Sequence[PositionLogprobs]
    finish_reason: FinishReason | None
    stop_token_id: int | None
    error: str
    preemptions: int
    fault: str | None = None


class Progress(enum.Enum):
    """What news did to a sequence."""

    GOES_ON = "goes on"
    GAP = "gap"
    ENDED_THERE = "ended there"
    """The instance ended it."""
    ENDED_HERE = "ended here"
    """The router ended it (stop string); the instance must be told."""


class RoutedSequence(Protocol):
    """One sequence of token ids that some instance has to continue. Survives any instance."""

    @property
    def key(self) -> str:
        """For people: the request's id and the answer's index."""
        ...

    @property
    def order(self) -> tuple[int, int]:
        """Place in the queue: request by arrival, then answer."""
        ...

    @property
    def prompt(self) -> Sequence[int]:
        """Prompt token ids."""
        ...

    @property
    def features(self) -> PromptFeatures:
        """What is known of the prompt's text."""
        ...

    @property
    def output(self) -> Sequence[int]:
        """Output token ids so far."""
        ...

    @property
    def sampling(self) -> SamplingParams:
        """With seed and max_tokens set."""
        ...

    @property
    def arrived(self) -> float:
        """When its request came, the router's clock."""
        ...

    @property
    def ttft_s(self) -> float | None:
        """TTFT target, seconds; None: the service's own."""
        ...

    @property
    def tpot_s(self) -> float | None:
        """TPOT target, seconds; None: the service's own."""
        ...

    @property
    def piece_gap_s(self) -> float:
        """New output may be told this seldom, seconds, but for the first and the end; 0: after every step."""
        ...

    @property
    def tenant(self) -> str:
        """Whose it is, for shares of the cluster; empty where everybody is one."""
        ...

    @property
    def has_moved(self) -> bool:
        """True if an instance had it and lost it."""
        ...

    @property
    def finished(self) -> bool:
        """True once its output has ended."""
        ...

    def apply(self, news: SequenceNews) -> Progress:
        """Take news in."""
        ...

    def moved(self) -> bool:
        """Note that its instance lost it. False: it has been lost too often to try again, and has failed."""
        ...

    def fail(self, error: TidePipeError) -> None:
        """End it, and the request that it belongs to."""
        ...
