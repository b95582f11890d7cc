"""The meters of requests: latencies and ends, as clients see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tidepipe_common.types.request import Usage
from tidepipe_common.types.sampling import FinishReason


@dataclass(frozen=True, slots=True)
class EndedAnswer:
    """since_arrival_s: until it ended. ttft_s, tpot_s: targets of its own; None: the service's.

    shed: an error that says no more than "later".
    """

    reason: FinishReason
    usage: Usage
    since_arrival_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    shed: bool = False

    @property
    def per_token_s(self) -> float | None:
        """From the first to the last token, for each but the first; None for an answer of less than two."""
        usage = self.usage
        if usage.output_tokens < 2:
            return None
        return (usage.total_ms - usage.ttft_ms) / 1000 / (usage.output_tokens - 1)


class RequestMeter(Protocol):
    """Hears what happens to requests. Times in seconds, on the router's clock."""

    def admitted(self, prompt_tokens: int) -> None:
        """A request was tokenized and goes to an instance."""
        ...

    def first_tokens(self, count: int, since_arrival_s: float) -> None:
        """The first tokens of an answer came."""
        ...

    def more_tokens(self, count: int, since_last_s: float) -> None:
        """More tokens of an answer came, together."""
        ...

    def ended(self, answer: EndedAnswer) -> None:
        """An answer ended."""
        ...


class Unmeasured:
    """For those who do not want to know."""

    def admitted(self, prompt_tokens: int) -> None:
        """See RequestMeter."""

    def first_tokens(self, count: int, since_arrival_s: float) -> None:
        """See RequestMeter."""

    def more_tokens(self, count: int, since_last_s: float) -> None:
        """See RequestMeter."""

    def ended(self, answer: EndedAnswer) -> None:
        """See RequestMeter."""


class Meters:
    """A RequestMeter that passes everything on to several."""

    def __init__(self, *meters: RequestMeter) -> None:
        self._meters = meters

    def admitted(self, prompt_tokens: int) -> None:
        """See RequestMeter."""
        for meter in self._meters:
            meter.admitted(prompt_tokens)

    def first_tokens(self, count: int, since_arrival_s: float) -> None:
        """See RequestMeter."""
        for meter in self._meters:
            meter.first_tokens(count, since_arrival_s)

    def more_tokens(self, count: int, since_last_s: float) -> None:
        """See RequestMeter."""
        for meter in self._meters:
            meter.more_tokens(count, since_last_s)

    def ended(self, answer: EndedAnswer) -> None:
        """See RequestMeter."""
        for meter in self._meters:
            meter.ended(answer)
