"""One sequence as the scheduler sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from common.sampling import SamplingParams

NEVER = 1 << 60


class State(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"  # holds no KV blocks
    PREFILL = "prefill"  # admitted; some of its tokens are not computed yet
    DECODE = "decode"  # generates token after token
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt, output so far, and what it holds.

    max_tokens: output tokens at most, the context's limit included.
    key: its name at the stages; a new one each time it is (re)admitted.
    planned: positions whose computation is done or on its way.
    in_flight: steps on their way that have a row of it.
    failures: steps with a row of it whose execution failed.
    review_at: output tokens at which its length forecast is made anew, because it outlived the present one.
    end_tokens: token ids that end it.
    told_blocks: how many of its blocks the stages know of.
    first_token_due, tpot_s: its latency targets, see NewSequence.
    first_token_at: when it got its first token here; None before. given: output tokens that it came with.
    """

    sequence_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    arrived: float
    deadline: float | None
    output: list[int] = field(default_factory=list)
    state: State = State.WAITING
    key: int = 0
    blocks: list[int] = field(default_factory=list)
    planned: int = 0
    in_flight: int = 0
    admitted_order: int = 0
    preemptions: int = 0
    failures: int = 0
    predicted_p50: float | None = None
    predicted_p90: float | None = None
    review_at: int = NEVER
    end_tokens: frozenset[int] = frozenset()
    told_blocks: int = 0
    first_token_due: float | None = None
    tpot_s: float | None = None
    first_token_at: float | None = None
    given: int = 0

    @property
    def length(self) -> int:
        """Tokens so far, prompt and output."""
        return len(self.prompt) + len(self.output)

    def tokens(self, begin: int, end: int) -> tuple[int, ...]:
        """Token ids at positions begin .. end - 1."""
        prompt = len(self.prompt)
        if begin >= prompt:
            return tuple(self.output[begin - prompt : end - prompt])
        if end <= prompt:
            return self.prompt[begin:end]
        return self.prompt[begin:] + tuple(self.output[: end - prompt])
