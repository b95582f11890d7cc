"""One of a request's answers, from submission to its end, wherever it runs."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from router.instances.sequence import NO_PREFIX, Progress, PromptPrefix, RetryBudget
from router.requests.meter import EndedAnswer, RequestMeter
from router.requests.output import AnswerText, TokenLog
from tidepipe_common.errors import InvalidRequestError, TidePipeError
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.lengths.request import NO_PROMPT
from tidepipe_common.types.prompt_reading import PromptLog
from tidepipe_common.types.request import Answer, AnswerDelta, Usage
from tidepipe_common.types.results import SequenceUpdate
from tidepipe_common.types.sampling import FinishReason, SamplingParams

MAX_DELTA_TOKENS = 16_384
MAX_DELTA_LOGPROBS = 256
MAX_DELTA_CHARACTERS = 1_000_000
MAX_DELTA_PROMPT = 65_536
"""A piece stays far below the message limit, also for a client that has everything still to get."""


@dataclass(slots=True)
class Cursor:
    """A listener's place in one answer; moves on with each read. done: it has the end as well."""

    tokens: int = 0
    characters: int = 0
    done: bool = False
    prompt: int = 0


class RunningAnswer:
    """Token and text log of one answer. A RoutedSequence to instances, read by position by listeners."""

    def __init__(
        self,
        key: str,
        index: int,
        prompt: array[int],
        sampling: SamplingParams,
        text: AnswerText | None,
        changed: Callable[[], None],
        failed: Callable[[TidePipeError], None],
        clock: Callable[[], float],
        arrived: float,
        meter: RequestMeter,
        features: PromptFeatures = NO_PROMPT,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        piece_gap_s: float = 0.0,
        tenant: str = "",
        prefix: PromptPrefix = NO_PREFIX,
        trace_context: str = "",
        priority: int = 0,
        background: bool = False,
        adapter: str = "",
    ) -> None:
        """text: None if neither text nor stop strings are wanted. index: among its request's answers.

        changed: there is something new to read, or it has ended. failed: its request cannot go on.
        adapter: its fingerprint.
        """
        self.key = key
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.piece_gap_s = piece_gap_s
        self.tenant = tenant
        self.prefix = prefix
        self.trace_context = trace_context
        self.priority = priority
        self.background = background
        self.adapter = adapter
        self.arrived = arrived
        self.index = index
        self.features = features
        self.sampling = sampling
        self.finish_reason: FinishReason | None = None
        self._prompt = prompt
        self._log = TokenLog()
        self._text = text
        self._changed = changed
        self._failed = failed
        self._clock = clock
        self._meter = meter
        self._first_token_at: float | None = None
        self._last_token_at = arrived
        self._stopped_by: int | str | None = None
        self._error = ""
        self._cached_tokens = 0
        self._wants_prompt = sampling.prompt_logprobs is not None
        self._prompt_log = PromptLog()
        self._vector = b""
        self._retry_budget = RetryBudget()

    @property
    def prompt(self) -> Sequence[int]:
        """Part of RoutedSequence."""
        return self._prompt

    @property
    def output(self) -> Sequence[int]:
        """Part of RoutedSequence."""
        return self._log.tokens

    @property
    def has_moved(self) -> bool:
        """Part of RoutedSequence."""
        return self._retry_budget.lost > 0

    @property
    def finished(self) -> bool:
        """Part of RoutedSequence."""
        return self.finish_reason is not None

    @property
    def bytes_held(self) -> int:
        """What it takes to remember it, its prompt apart."""
        return (
            self._prompt_log.bytes
            + len(self._vector)
            + self._log.bytes
            + (0 if self._text is None else self._text.log.bytes)
        )

    @property
    def usage(self) -> Usage:
        """What it took so far."""
        first = self._last_token_at if self._first_token_at is None else self._first_token_at
        return Usage(
            prompt_tokens=len(self._prompt),
            output_tokens=len(self._log),
            ttft_ms=1000 * (first - self.arrived),
            total_ms=1000 * (self._last_token_at - self.arrived),
            preemptions=self._retry_budget.preemptions,
            cached_tokens=self._cached_tokens,
        )

    def apply(self, news: SequenceUpdate) -> Progress:
        """Part of RoutedSequence."""
        if self.finished:
            return Progress.ENDED_HERE
        goes_on = self.has_moved and len(self._log) > 0
        fresh = self._log.merge(news.token_offset, news.token_ids, news.logprobs)
        if fresh is None:
            return Progress.GAP
        if not self._read_prompt(news):
            return Progress.GAP
        end = news.end
        # Where it goes on it may find more, and less: what others have computed there, and its own.
        if not goes_on and self._first_token_at is None:
            self._cached_tokens = news.cached_tokens
        self._retry_budget.heard(fresh, 0 if end is None else end.preemptions)
        if fresh:
            now = self._clock()
            if self._first_token_at is None:
                self._first_token_at = now
                self._meter.first_tokens(fresh, now - self.arrived)
            else:
                self._meter.more_tokens(fresh, now - self._last_token_at)
            self._last_token_at = now
            if self._read_text(fresh):
                return Progress.ENDED_HERE
        if end is not None:
            if end.reason is FinishReason.ERROR and end.fault is not None:
                # For everybody who asks, as if it had been known before: tried again it will be seen again.
                self.fail(InvalidRequestError(end.error, end.fault or None))
            elif end.reason.whole and not (self.prompt_known and self._has_vector):
                self.fail(TidePipeError("the instance did not say what was asked of the prompt"))
            else:
                self.finish(end.reason, end.stop_token, end.error)
            return Progress.ENDED_THERE
        if fresh:
            self._changed()
        return Progress.GOES_ON

    def _read_prompt(self, news: SequenceUpdate) -> bool:
        """Take in what was read off the prompt; False for a gap."""
        self._vector = news.vector or self._vector
        if news.prompt_logprobs is None or not self._wants_prompt:
            return True
        if not self._prompt_log.merge(news.prompt_logprobs):
            return False
        if self.prompt_known:
            # Wherever it goes on, that is not computed again.
            self.sampling = replace(self.sampling, prompt_logprobs=None)
        return True

    @property
    def prompt_known(self) -> bool:
        """True if all is known that is wanted of its prompt, but for a vector."""
        return not self._wants_prompt or len(self._prompt_log) == len(self._prompt) - 1

    @property
    def _is_all_there(self) -> bool:
        """True if nothing is wanted any more, so that only the news of its end can be missing."""
        most = self.sampling.max_tokens
        return most is not None and len(self._log) >= most and self.prompt_known and self._has_vector

    @property
    def _has_vector(self) -> bool:
        return self.sampling.pooling is None or bool(self._vector)

    def resume(self, given: SequenceUpdate) -> None:
        """Go on from what an earlier router had of it; nothing was read yet."""
        self.apply(given)
        if self._is_all_there:
            self.finish(FinishReason.LENGTH)

    def moved(self) -> bool:
        """Part of RoutedSequence."""
        self._retry_budget.end()
        if self._is_all_there:
            # Only the news of its end was lost.
            self.finish(FinishReason.LENGTH)
        elif hopeless := self._retry_budget.hopeless():
            self.fail(hopeless)
        return not self.finished

    def fail(self, error: TidePipeError) -> None:
        """Part of RoutedSequence."""
        self._failed(error)

    def finish(
        self,
        reason: FinishReason,
        stopped_by: int | str | None = None,
        error: str = "",
        *,
        flush: bool = True,
        shed: bool = False,
    ) -> None:
        """End it. flush: text that was held back belongs to it. shed: its client comes again."""
        if self.finished:
            return
        if flush and self._text is not None and (matched := self._text.flush()) is not None:
            reason, stopped_by, error = FinishReason.STOP, matched, ""
        self.finish_reason = reason
        self._stopped_by = stopped_by
        self._error = error
        if self._text is not None:
            self._text.log.compact()
        # It goes nowhere any more, but is remembered for long.
        self.prefix = NO_PREFIX
        elapsed = self._clock() - self.arrived
        self._meter.ended(EndedAnswer(reason, self.usage, elapsed, self.ttft_s, self.tpot_s, shed))
        self._changed()

    def read(self, cursor: Cursor) -> AnswerDelta | None:
        """What is new behind the cursor, which moves on; None if nothing is.

        InvalidRequestError if the cursor is behind the end of a complete answer.
        """
        if self.finish_reason is not None and self.finish_reason.whole:
            self._check_within(cursor)
        prompt = self._prompt_log.read(cursor.prompt, cursor.prompt + self._delta_prompt())
        cursor.prompt += 0 if prompt is None else len(prompt)
        if cursor.prompt < len(self._prompt_log) or not (self.prompt_known or self.finished):
            # Whatever follows the prompt comes behind it.
            if prompt is None:
                return None
            before = (cursor.tokens, cursor.characters)
            return AnswerDelta(Answer(index=self.index, prompt_logprobs=prompt), *before)
        tokens_end = min(len(self._log), cursor.tokens + self._delta_tokens())
        token_ids = tuple(self._log.tokens[cursor.tokens : tokens_end])
        logprobs = self._log.logprobs.read(cursor.tokens, tokens_end)
        text = self._text.log.read(cursor.characters, MAX_DELTA_CHARACTERS) if self._text is not None else ""
        before = (cursor.tokens, cursor.characters)
        cursor.tokens += len(token_ids)
        cursor.characters += len(text)
        ends = self.finished and not cursor.done and self._is_at_end(cursor)
        if not (token_ids or text or ends or prompt):
            return None
        cursor.done = cursor.done or ends
        piece = Answer(
            index=self.index,
            token_ids=token_ids,
            text=text,
            logprobs=logprobs,
            finish_reason=self.finish_reason if ends else None,
            stopped_by=self._stopped_by if ends else None,
            error=self._error if ends else "",
            prompt_logprobs=prompt,
            vector=self._vector if ends else b"",
        )
        return AnswerDelta(piece, *before, usage=self.usage if ends else None)

    def _check_within(self, cursor: Cursor) -> None:
        """One that grows yet may reach it; one that was cut says so, which is more to the point."""
        characters = len(self._text.log) if self._text is not None else 0
        for what, here, all_of in (
            ("tokens", cursor.tokens, len(self._log)),
            ("characters", cursor.characters, characters),
        ):
            if here > all_of:
                raise InvalidRequestError(
                    f"resume says that {here} {what} of answer {self.index} are there already, "
                    f"but it has {all_of}",
                    "resume",
                )

    def _is_at_end(self, cursor: Cursor) -> bool:
        characters = len(self._text.log) if self._text is not None else 0
        return cursor.tokens >= len(self._log) and cursor.characters >= characters

    def _delta_tokens(self) -> int:
        return MAX_DELTA_LOGPROBS if self._log.logprobs else MAX_DELTA_TOKENS

    def _delta_prompt(self) -> int:
        return max(1, MAX_DELTA_PROMPT // (1 + self._prompt_log.top))

    def _read_text(self, fresh: int) -> bool:
        """Decode the newest tokens. True if a stop string ended the answer."""
        if self._text is None:
            return False
        before = len(self._log) - fresh
        count, matched = self._text.push(self._log.tokens[before:])
        if matched is None:
            return False
        self._log.cut(before + count)
        self.finish(FinishReason.STOP, matched, flush=False)
        return True
