"""SLO attainment: the share of answers that kept the latency that they were promised."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from router.requests.meter import EndedAnswer
from router.scheduler.slo import SloTarget
from tidepipe_common.types.sampling import FinishReason

WINDOW_S = 60.0
MAX_ANSWERS = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer that ended, at a time of the router's clock. Seconds; None: it has no such figure.

    An answer of one token has no TPOT. One that failed has neither figure and has met nothing.
    """

    at: float
    target: SloTarget
    failed: bool
    ttft_s: float | None
    tpot_s: float | None


@dataclass(frozen=True, slots=True)
class Attainment:
    """met of count answers kept their target; p50_s, p90_s of those that were served, None without any."""

    met: int
    count: int
    p50_s: float | None
    p90_s: float | None


class PromiseMeter:
    """A RequestMeter of one model, whose requests were promised something of their own."""

    def __init__(self, record: AttainmentRecord, target: Callable[[], SloTarget]) -> None:
        """target: of requests that bring none."""
        self._record = record
        self._target = target

    def admitted(self, prompt_tokens: int) -> None:
        """Part of RequestMeter."""
        self._record.admitted(prompt_tokens)

    def first_tokens(self, count: int, since_arrival_s: float) -> None:
        """Part of RequestMeter."""
        self._record.first_tokens(count, since_arrival_s)

    def more_tokens(self, count: int, since_last_s: float) -> None:
        """Part of RequestMeter."""
        self._record.more_tokens(count, since_last_s)

    def ended(self, answer: EndedAnswer) -> None:
        """Part of RequestMeter."""
        target = self._target()
        own = replace(answer, ttft_s=answer.ttft_s or target.ttft_s, tpot_s=answer.tpot_s or target.tpot_s)
        self._record.ended(own)


class AttainmentRecord:
    """A RequestMeter that remembers the answers of the last minute, `MAX_ANSWERS` at most."""

    def __init__(self, default: SloTarget, clock: Callable[[], float]) -> None:
        """default: targets of requests that bring none of their own."""
        self.default = default
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self._clock = clock
        self._outcomes: deque[Outcome] = deque(maxlen=MAX_ANSWERS)

    def admitted(self, prompt_tokens: int) -> None:
        """Part of RequestMeter."""
        self.prompt_tokens += prompt_tokens

    def first_tokens(self, count: int, since_arrival_s: float) -> None:
        """Part of RequestMeter."""
        self.generated_tokens += count

    def more_tokens(self, count: int, since_last_s: float) -> None:
        """Part of RequestMeter."""
        self.generated_tokens += count

    def ended(self, answer: EndedAnswer) -> None:
        """Part of RequestMeter. Who went away by itself was promised nothing."""
        if answer.reason is FinishReason.CANCELLED:
            return
        default = self.default
        target = SloTarget(answer.ttft_s or default.ttft_s, answer.tpot_s or default.tpot_s)
        failed = answer.reason is FinishReason.ERROR or not answer.usage.output_tokens
        first = None if failed else answer.usage.ttft_ms / 1000
        per_token = None if failed else answer.per_token_s
        self._outcomes.append(Outcome(self._clock(), target, failed, first, per_token))

    def ttft(self) -> Attainment:
        """Of the last minute; failed answers count as late."""
        recent = self._recent()
        met = sum(one.ttft_s is not None and one.ttft_s <= one.target.ttft_s for one in recent)
        return _attainment(met, len(recent), [one.ttft_s for one in recent if one.ttft_s is not None])

    def tpot(self) -> Attainment:
        """Of the last minute; failed answers count as late, answers of one token not at all."""
        recent = self._recent()
        times = [one.tpot_s for one in recent if one.tpot_s is not None]
        met = sum(one.tpot_s is not None and one.tpot_s <= one.target.tpot_s for one in recent)
        return _attainment(met, len(times) + sum(one.failed for one in recent), times)

    def _recent(self) -> list[Outcome]:
        since = self._clock() - WINDOW_S
        while self._outcomes and self._outcomes[0].at < since:
            self._outcomes.popleft()
        return list(self._outcomes)


def _attainment(met: int, count: int, times: Sequence[float]) -> Attainment:
    ordered = sorted(times)
    if not ordered:
        return Attainment(met, count, None, None)
    return Attainment(met, count, ordered[len(ordered) // 2], ordered[int(0.9 * (len(ordered) - 1))])
