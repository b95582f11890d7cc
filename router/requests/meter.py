"""What is measured of requests, as they see it."""

from __future__ import annotations

from typing import Protocol

from common.request import Usage
from common.sampling import FinishReason


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

    def ended(
        self,
        reason: FinishReason,
        usage: Usage,
        since_arrival_s: float,
        ttft_s: float | None,
        tpot_s: float | None,
    ) -> None:
        """An answer ended. ttft_s, tpot_s: targets of its own; None: the service's."""
        ...


class Unmeasured:
    """For those who do not want to know."""

    def admitted(self, prompt_tokens: int) -> None:
        """See RequestMeter."""

    def first_tokens(self, count: int, since_arrival_s: float) -> None:
        """See RequestMeter."""

    def more_tokens(self, count: int, since_last_s: float) -> None:
        """See RequestMeter."""

    def ended(
        self,
        reason: FinishReason,
        usage: Usage,
        since_arrival_s: float,
        ttft_s: float | None,
        tpot_s: float | None,
    ) -> None:
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

    def ended(
        self,
        reason: FinishReason,
        usage: Usage,
        since_arrival_s: float,
        ttft_s: float | None,
        tpot_s: float | None,
    ) -> None:
        """See RequestMeter."""
        for meter in self._meters:
            meter.ended(reason, usage, since_arrival_s, ttft_s, tpot_s)
