"""A sequence as a router hands it over."""

from __future__ import annotations

from dataclasses import dataclass

from controller.scheduler.events import NewSequence
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.lengths.request import NO_PROMPT
from tidepipe_common.types.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Submission:
    """deadline_s: seconds from now, or None.

    first_token_due_s: time left of its TTFT target, may be below 0. tpot_s: per further token. None: none.
    piece_gap_s: new tokens may be told this seldom.
    """

    sequence_id: str
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    sampling: SamplingParams
    deadline_s: float | None
    first_token_due_s: float | None = None
    tpot_s: float | None = None
    features: PromptFeatures = NO_PROMPT
    piece_gap_s: float = 0.0

    def arrival(self, now: float) -> NewSequence:
        """As the core hears of it, in points of time of its clock."""
        deadline = None if self.deadline_s is None else now + self.deadline_s
        due = None if self.first_token_due_s is None else now + self.first_token_due_s
        return NewSequence(
            self.sequence_id, self.prompt, self.sampling, self.output, deadline, due, self.tpot_s
        )
