"""A sequence that another router gave us: a RoutedSequence whose listener is that router."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from router.instances.sequence import NO_PREFIX, Progress, PromptPrefix, RetryBudget
from router.requests.output import TokenLog
from tidepipe_common.errors import InvalidRequestError, OverloadedError, TidePipeError, UnavailableError
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.rpc.results import ResultsHub
from tidepipe_common.types.results import SequenceEnd, SequenceUpdate
from tidepipe_common.types.sampling import FinishReason, SamplingParams


class ForwardedSequence:
    """Passes on what its instance says. See RoutedSequence."""

    def __init__(
        self,
        key: str,
        prompt: array[int],
        given: Sequence[int],
        sampling: SamplingParams,
        features: PromptFeatures,
        hub: ResultsHub,
        *,
        arrived: float,
        ttft_s: float | None,
        tpot_s: float | None,
        piece_gap_s: float,
        tenant: str = "",
        prefix: PromptPrefix = NO_PREFIX,
        trace_context: str = "",
        priority: int = 0,
        background: bool = False,
        adapter: str = "",
    ) -> None:
        """given: output that it came with. arrived: at the first router, our clock.

        prefix: its root is the first router's, which knows whose it is. adapter: its fingerprint.
        """
        self.key = key
        self.prompt = prompt
        self.sampling = sampling
        self.features = features
        self.arrived = arrived
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.piece_gap_s = piece_gap_s
        self.tenant = tenant
        self.prefix = prefix
        self.trace_context = trace_context
        self.priority = priority
        self.background = background
        self.adapter = adapter
        self.finished = False
        self._log = TokenLog()
        self._log.tokens.extend(given)
        self._hub = hub
        self._retry_budget = RetryBudget()

    @property
    def output(self) -> Sequence[int]:
        """Part of RoutedSequence."""
        return self._log.tokens

    @property
    def has_moved(self) -> bool:
        """Part of RoutedSequence."""
        return self._retry_budget.lost > 0

    def apply(self, news: SequenceUpdate) -> Progress:
        """Part of RoutedSequence."""
        if self.finished:
            return Progress.ENDED_HERE
        fresh = self._log.merge(news.token_offset, news.token_ids, news.logprobs)
        if fresh is None:
            return Progress.GAP
        if news.prompt_logprobs is not None or news.vector:
            self._hub.prompt_read(self.key, news.prompt_logprobs, news.vector)
        end = news.end
        if news.cached_tokens:
            self._hub.found(self.key, news.cached_tokens)
        self._retry_budget.heard(fresh, 0 if end is None else end.preemptions)
        if fresh:
            known = len(self._log.logprobs)
            logprobs = self._log.logprobs.read(known - fresh, known) if known else ()
            self._hub.extend(self.key, self._log.tokens[-fresh:], logprobs)
        if end is not None:
            self.end(end.reason, end.stop_token, end.error, end.fault)
            return Progress.ENDED_THERE
        return Progress.GOES_ON

    def moved(self) -> bool:
        """Part of RoutedSequence."""
        self._retry_budget.end()
        if self.sampling.max_tokens is not None and len(self._log) >= self.sampling.max_tokens:
            self.end(FinishReason.LENGTH)
        elif hopeless := self._retry_budget.hopeless():
            self.fail(hopeless)
        return not self.finished

    def fail(self, error: TidePipeError) -> None:
        """Part of RoutedSequence. What another router's instances may still do is given back to ours."""
        if isinstance(error, OverloadedError | UnavailableError):
            self.end(FinishReason.CANCELLED)
        else:
            fault = (error.param or "") if isinstance(error, InvalidRequestError) else None
            self.end(FinishReason.ERROR, error=str(error), fault=fault)

    def end(
        self,
        reason: FinishReason,
        stop_token: int | None = None,
        error: str = "",
        fault: str | None = None,
    ) -> None:
        """Nothing more will come."""
        if not self.finished:
            self.finished = True
            self._hub.finish(
                SequenceEnd(self.key, reason, stop_token, error, self._retry_budget.preemptions, fault)
            )
