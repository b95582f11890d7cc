"""One request in the table: whose it is, its answers, who listens (Subscription), and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import marshal
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import astuple, fields, replace
from types import TracebackType
from typing import Any

from router.instances.sequence import NO_PREFIX, PromptPrefix
from router.models.model import ServedModel
from router.requests.meter import RequestMeter
from router.requests.output import AnswerText
from router.requests.running_answer import Cursor, RunningAnswer
from tidepipe_common.dialects import Reading
from tidepipe_common.errors import InvalidRequestError, OverloadedError, TidePipeError
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.lengths.request import NO_PROMPT
from tidepipe_common.notifier import Notifier
from tidepipe_common.security.api_key import split_key
from tidepipe_common.security.caller import current
from tidepipe_common.security.key_access import Work, bearer
from tidepipe_common.telemetry.traces import NO_SPAN, Span
from tidepipe_common.types.request import (
    AnswerDelta,
    AnswerPosition,
    ChatTurn,
    GenerationRequest,
    Usage,
    about_prompt,
)
from tidepipe_common.types.sampling import FinishReason, SamplingParams

OBJECT_BYTES = 4096
"""What a request or an answer takes beside its tokens and text: its parameters and Python's objects."""
MESSAGES_PER_S = 6_000
"""Messages that one core sends beside its other work: each costs about 90 microseconds, mostly gRPC's,
whatever it carries (bench/router_capacity.py)."""
LONGEST_GAP_S = 0.25
_FORMAT = 2
"""Of marshal: the last one whose bytes depend on the values alone, and not on which objects are shared."""


def known_by_key(request: GenerationRequest, authorization: str | None) -> GenerationRequest:
    """The request with its owner, and with the public id of its API key in front of the user that it names,
    so that users of two keys are never taken for one. The key's secret is not part of it."""
    request = replace(request, owner=current().owner)
    parts = split_key(bearer(authorization) or "")
    if parts is None:
        return request
    return replace(request, client=f"{parts[0]}/{request.client}")


def owned_name(owner: str, request_id: str) -> str:
    """A request's name at this router: clients choose ids, and two of them may choose the same."""
    return f"{owner}:{request_id}" if owner else request_id


def request_digest(request: GenerationRequest) -> str:
    """Equal for equal requests, also in another process; how the answer is presented does not matter."""
    sampling = request.sampling
    values: dict[str, Any] = {field.name: getattr(sampling, field.name) for field in fields(SamplingParams)}
    values["logit_bias"] = tuple(sorted(sampling.logit_bias.items()))
    values["structure"] = None if sampling.structure is None else astuple(sampling.structure)
    values["pooling"] = None if sampling.pooling is None else sampling.pooling.value
    for name in ("prompt_logprobs", "pooling"):
        # As it was before there were these: a key that was stored then stands for the same request.
        if values[name] is None:
            del values[name]
    values["thought"] = None  # routers add it
    prompt: Any = request.prompt
    if request.is_chat:
        prompt = tuple(astuple(turn) for turn in request.prompt if isinstance(turn, ChatTurn))
    if request.more_prompts:
        prompt = request.prompts
    content: Any = (
        prompt,
        request.tools,
        astuple(request.tool_choice),
        astuple(request.template),
        tuple(values.items()),
        request.model,
        request.skip_text,
        request.keep_special_tokens,
        request.marks,
    )
    return hashlib.blake2b(marshal.dumps(content, _FORMAT), digest_size=16).hexdigest()


class RequestEntry:
    """A request from its first call until it is forgotten."""

    def __init__(
        self,
        request_id: str,
        digest: str,
        sampling: SamplingParams,
        over: Callable[[RequestEntry], None],
        clock: Callable[[], float],
        meter: RequestMeter,
        *,
        trace_id: str = "",
        owner: str = "",
        span: Span = NO_SPAN,
    ) -> None:
        """digest: tells another request with the same id from a repetition.

        owner: whose it is; see GenerationRequest. over: all answers have ended, or it failed.
        meter: until it is known which model it is for, which has its own.
        """
        self.trace_id = trace_id
        self.span = span
        self.request_id = request_id
        self.owner = owner
        self.work: Work | None = None
        self.name = owned_name(owner, request_id)
        self.digest = digest
        self.model: ServedModel | None = None
        """Known from its admission on."""
        self.reading: Reading | None = None
        """How its answers are read, from then on. None: they are words."""
        self.answers: list[RunningAnswer] = []
        self.changed = Notifier()
        self.over = asyncio.Event()
        self.failure: TidePipeError | None = None
        self.ended_at: float | None = None
        self.brought_bytes = 0
        self.arrived = clock()
        self._sampling = sampling
        self._over = over
        self._clock = clock
        self._unknown_meter = meter

    @property
    def ended(self) -> bool:
        """True once nothing more will come."""
        return self.ended_at is not None

    @property
    def complete(self) -> bool:
        """True if every answer ended as it was asked for: none was cut, by whomever, and none failed."""
        reasons = [answer.finish_reason for answer in self.answers]
        return self.failure is None and bool(reasons) and all(one and one.whole for one in reasons)

    @property
    def broken(self) -> bool:
        """True if an answer ended with an error."""
        return any(answer.finish_reason is FinishReason.ERROR for answer in self.answers)

    @property
    def shed(self) -> bool:
        """True if nothing is wrong with it: it was told to come again later."""
        return isinstance(self.failure, OverloadedError)

    @property
    def prompt_tokens(self) -> int:
        """Prompt length; zero before it is known."""
        return sum(len(answer.prompt) for answer in self._one_a_prompt)

    @property
    def _one_a_prompt(self) -> list[RunningAnswer]:
        """The first answer to each of its prompts."""
        return self.answers[:: self._sampling.n]

    @property
    def bytes_held(self) -> int:
        """What it takes to remember it; the answers to one prompt share it."""
        return (
            OBJECT_BYTES
            + 4 * self.prompt_tokens
            + sum(OBJECT_BYTES + answer.bytes_held for answer in self.answers)
        )

    @property
    def usage(self) -> Usage:
        """What all answers took together."""
        parts, each = [answer.usage for answer in self.answers], self._sampling.n
        if not parts:
            return Usage(prompt_tokens=0, output_tokens=0)
        return Usage(
            prompt_tokens=self.prompt_tokens,
            output_tokens=sum(part.output_tokens for part in parts),
            ttft_ms=min(part.ttft_ms for part in parts),
            total_ms=max(part.total_ms for part in parts),
            preemptions=sum(part.preemptions for part in parts),
            # A prompt counts once, and so does what nobody had to compute of it.
            cached_tokens=sum(
                min(part.cached_tokens for part in parts[first : first + each])
                for first in range(0, len(parts), each)
            ),
        )

    @property
    def _meter(self) -> RequestMeter:
        return self._unknown_meter if self.model is None else self.model.meter

    def submit(self, answer: RunningAnswer) -> None:
        """One of its answers needs an instance of its model."""
        assert self.model is not None, "it has been admitted"
        self.model.dispatcher.submit(answer)

    def waits(self, answer: RunningAnswer) -> bool:
        """Does one of its answers wait for an instance?"""
        return self.model is not None and self.model.dispatcher.is_pending(answer)

    def _withdraw(self, answer: RunningAnswer) -> None:
        """It has ended; wherever it runs, it must not go on."""
        if self.model is not None:
            self.model.dispatcher.withdraw(answer)

    def new_answer(
        self,
        index: int,
        prompt: array[int],
        sampling: SamplingParams,
        text: AnswerText | None = None,
        features: PromptFeatures = NO_PROMPT,
        *,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        piece_gap_s: float = 0.0,
        prefix: PromptPrefix = NO_PREFIX,
        priority: int = 0,
        background: bool = False,
        adapter: str = "",
    ) -> RunningAnswer:
        """One of its answers, to be begun with. sampling: complete, with a seed and max_tokens."""
        return RunningAnswer(
            key=f"{self.name}/{index}",
            index=index,
            prompt=prompt,
            features=features,
            sampling=sampling,
            text=text,
            changed=self.answer_changed,
            failed=functools.partial(self._answer_failed, index),
            clock=self._clock,
            arrived=self.arrived,
            meter=self._meter,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            piece_gap_s=piece_gap_s,
            tenant=self.owner,
            prefix=prefix,
            trace_context=self.span.context,
            priority=priority,
            background=background,
            adapter=adapter,
        )

    def begin(self, answers: list[RunningAnswer]) -> None:
        """It was admitted; its answers still have to be submitted."""
        self.answers = answers
        self._meter.admitted(self.prompt_tokens)
        self.changed.notify_all()

    def cancel(self) -> None:
        """End all answers where they stand; they are empty if it was not admitted yet."""
        if not self.answers:
            nothing, sampling = array("I"), self._sampling
            self.begin([self.new_answer(index, nothing, sampling) for index in range(sampling.n)])
        for answer in self.answers:
            if not answer.finished:
                answer.finish(FinishReason.CANCELLED)
                self._withdraw(answer)

    def fail(self, error: TidePipeError) -> None:
        """End everything with an error, which every listener gets."""
        if self.ended:
            return
        self.failure = error
        self._end()
        for answer in self.answers:
            if not answer.finished:
                answer.finish(FinishReason.ERROR, error=str(error), shed=self.shed)
                self._withdraw(answer)

    def _answer_failed(self, index: int, error: TidePipeError) -> None:
        each = self._sampling.n
        if isinstance(error, InvalidRequestError) and len(self.answers) > each:
            error = about_prompt(index // each, error)
        self.fail(error)

    def answer_changed(self) -> None:
        """One of its answers has something new to read, or has ended."""
        self.changed.notify_all()
        if self.work is not None and len(self.answers) > 1 and not self.ended:
            self.work.running(sum(not answer.finished for answer in self.answers))
        if not self.ended and all(answer.finished for answer in self.answers):
            self._end()

    def _end(self) -> None:
        self.ended_at = self._clock()
        self.over.set()
        self._over(self)
        self.changed.notify_all()


class Subscription:
    """Counts as a listener from its creation until `with` is left; who creates it must enter it."""

    def __init__(
        self,
        entry: RequestEntry,
        attached: bool,
        leave: Callable[[], None],
        pacing: Pacing,
        gap_s: float = 0.0,
    ) -> None:
        """attached: the request was known before. gap_s: between two pieces at least, unless it ends."""
        self.entry = entry
        self.attached = attached
        self._leave = leave
        self._left = False
        self._pacing = pacing
        self._gap_s = gap_s
        pacing.streams += 1

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Listen no more. Harmless when repeated."""
        if not self._left:
            self._left = True
            self._pacing.streams -= 1
            self._leave()

    async def admitted(self) -> None:
        """Return when the request has been tokenized and checked; raises what is wrong with it."""
        while True:
            changed = self.entry.changed.next()
            if self.entry.failure is not None:
                raise self.entry.failure
            if self.entry.answers:
                return
            await changed.wait()

    async def deltas(self, resume: Sequence[AnswerPosition] = ()) -> AsyncIterator[list[AnswerDelta]]:
        """All that is new since the last piece, until every answer has ended.

        Reads by position from the answers' logs, so a slow listener costs no memory: what it missed
        travels together. Raises the error with which the request failed.
        """
        await self.admitted()
        answers = self.entry.answers
        cursors = [Cursor() for _ in answers]
        for position in resume:
            if position.index >= len(answers):
                raise InvalidRequestError(
                    f"resume names answer {position.index}, but the request has {len(answers)}", "resume"
                )
            cursors[position.index] = Cursor(position.tokens, position.characters, prompt=position.prompt)
        clock = asyncio.get_running_loop().time
        next_at = 0.0
        while not all(cursor.done for cursor in cursors):
            if (wait := next_at - clock()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self.entry.over.wait()
            changed = self.entry.changed.next()
            if self.entry.failure is not None:
                raise self.entry.failure
            new = [
                delta
                for answer, cursor in zip(answers, cursors, strict=True)
                if (delta := answer.read(cursor)) is not None
            ]
            if new:
                next_at = clock() + max(self._gap_s, self._pacing.gap_s)
                yield new
            else:
                await changed.wait()


class Pacing:
    """With very many streams tokens of several steps share a message, or the router would fall behind them.

    The gap between two messages of a stream is streams / MESSAGES_PER_S seconds: with 50 streams 8 ms, below
    any token's time; with 500 it is 83 ms. The first message of a stream never waits.
    """

    def __init__(self) -> None:
        self.streams = 0

    @property
    def gap_s(self) -> float:
        """Time from one message of a stream to its next at least."""
        return min(self.streams / MESSAGES_PER_S, LONGEST_GAP_S)
