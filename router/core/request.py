"""A request as routing sees it."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.prefill import PrefillWork, prompt_work
from router.core.slo import SloTarget


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """One sequence that needs an instance. Counts of tokens, times in seconds of the router's clock.

    prompt_tokens: to be computed: prompt, and output from an earlier stay at another instance.
    max_tokens: output at most. expected_tokens: output predicted, 0 if nobody did.
    expires: when it leaves the pending queue unserved; None for never. sheds: it may be refused at once if it
        would not be served in time.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    slo: SloTarget
    arrived: float
    expected_tokens: int = 0
    expires: float | None = None
    sheds: bool = False

    @property
    def work(self) -> PrefillWork:
        """What its prompt costs."""
        return prompt_work(self.prompt_tokens)

    @property
    def longest(self) -> int:
        """Prompt and output together, if the output grows as long as it may."""
        return self.prompt_tokens + self.max_tokens

    @property
    def first_token_due(self) -> float:
        """When its TTFT target ends."""
        return self.arrived + self.slo.ttft_s
