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

    def ended(self, reason: FinishReason, usage: Usage, since_arrival_s: float) -> None:
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

    def ended(self, reason: FinishReason, usage: Usage, since_arrival_s: float) -> None:
        """See RequestMeter."""
