"""The outcome of one request, as its client saw it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """Times in seconds after the run's start.

    due: when it should have been sent; latencies count from there: a slow client must not hide a queue.
    ended: when the call was over, well or not. arrivals: (time, tokens) of each piece of the answer.
    token_ids: of the answer, if another turn follows and the server tells them.
    rejected: refused for overload (429).
    """

    due: float
    sent: float = 0.0
    ended: float = 0.0
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    output_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    rejected: bool = False
    error: str = ""

    @property
    def ok(self) -> bool:
        """The whole answer came."""
        return not self.error and self.output_tokens > 0

    @property
    def first(self) -> float:
        """When the first token came."""
        return self.arrivals[0][0]

    @property
    def last(self) -> float:
        """When the last token came."""
        return self.arrivals[-1][0]

    @property
    def second(self) -> float:
        """When the second token came; the first, if there is no other."""
        if self.arrivals[0][1] > 1 or len(self.arrivals) == 1:
            return self.first
        return self.arrivals[1][0]

    def ttft(self, *, switch_wait: bool) -> float:
        """Until the first token; switch_wait (EcoServe's definition): until the second one flows."""
        return (self.second if switch_wait else self.first) - self.due

    def tpot(self, *, switch_wait: bool) -> float:
        """Per token after that, on average; 0 if there is none."""
        begin, had = (self.second, 2) if switch_wait else (self.first, 1)
        left = self.output_tokens - had
        return (self.last - begin) / left if left > 0 else 0.0

    def inter_token(self) -> list[float]:
        """Times between tokens; those of one piece came together."""
        gaps = []
        for (before, _), (now, tokens) in zip(self.arrivals, self.arrivals[1:], strict=False):
            gaps += [now - before, *[0.0] * (tokens - 1)]
        return gaps

    def met(self, ttft_s: float, tpot_s: float, *, switch_wait: bool) -> bool:
        """Both targets; a request that failed met none."""
        return (
            self.ok
            and self.ttft(switch_wait=switch_wait) <= ttft_s
            and self.tpot(switch_wait=switch_wait) <= tpot_s
        )
