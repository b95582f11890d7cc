"""One request on its way through a simulated cluster, and what its user sees."""

from __future__ import annotations

from dataclasses import dataclass

from router.scheduler.slo import SloTarget

NOT_YET = float("inf")


@dataclass(slots=True, eq=False)
class Job:
    """Lengths in tokens, times in seconds.

    expected: the output's length as predicted at arrival. computed: prompt tokens computed so far.
    generated: output tokens so far, kept up when it is preempted or ends. first: its first token.
    resumed: when decoding of its second token began. finished: its last token. refused: for overload.
    held: tokens of KV memory that it got when it was admitted.
    start_round, last_round: decode rounds of its instance in which it takes part (from, to).
    """

    index: int
    prompt: int
    output: int
    arrival: float
    slo: SloTarget
    expected: int = 0
    computed: int = 0
    generated: int = 0
    first: float = NOT_YET
    resumed: float = NOT_YET
    finished: float = NOT_YET
    refused: float = NOT_YET
    held: int = 0
    start_round: int = 0
    last_round: int = 0
    preemptions: int = 0
    decoding: bool = False

    @property
    def to_compute(self) -> int:
        """Prompt, and output that a preemption made part of it."""
        return self.prompt + self.generated

    def ttft(self, *, switch_wait: bool) -> float:
        """Seconds to the first token; switch_wait (EcoServe): to when the second can flow."""
        if switch_wait and self.output > 1:
            return max(self.resumed, self.first) - self.arrival
        return self.first - self.arrival

    def tpot(self, *, switch_wait: bool) -> float:
        """Seconds per token after that; 0 for an output of one token."""
        if self.output < 2:
            return 0.0
        begin = max(self.resumed, self.first) if switch_wait else self.first
        return (self.finished - begin) / (self.output - 1)

    def met(self, *, switch_wait: bool) -> bool:
        """Both targets."""
        return (
            self.ttft(switch_wait=switch_wait) <= self.slo.ttft_s
            and self.tpot(switch_wait=switch_wait) <= self.slo.tpot_s
        )
