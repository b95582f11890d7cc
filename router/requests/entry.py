"""One request in the table: its answers, who listens to them, and how it ended."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from typing import Protocol

from router.instances.sequence import RoutedSequence
from router.requests.admission import AdmittedRequest
from router.requests.meter import RequestMeter
from router.requests.running_answer import RunningAnswer
from tidepipe_common.errors import OverloadedError, TidePipeError
from tidepipe_common.notifier import Notifier
from tidepipe_common.security.key_access import Work
from tidepipe_common.types.request import Usage
from tidepipe_common.types.sampling import FinishReason, SamplingParams

OBJECT_BYTES = 4096
"""What a request or an answer takes beside its tokens and text: its parameters and Python's objects."""


def owned_name(owner: str, request_id: str) -> str:
    """A request's name at this router: clients choose ids, and two of them may choose the same."""
    return f"{owner}:{request_id}" if owner else request_id


class EntryHost(Protocol):
    """The table, as its entries see it."""

    def withdraw(self, sequence: RoutedSequence) -> None:
        """The sequence has ended; wherever it runs, it must not go on."""
        ...

    def entry_ended(self, entry: RequestEntry) -> None:
        """All of its answers have ended, or it failed."""
        ...


class RequestEntry:
    """A request from its first call until it is forgotten."""

    def __init__(
        self,
        request_id: str,
        number: int,
        digest: str,
        sampling: SamplingParams,
        host: EntryHost,
        clock: Callable[[], float],
        meter: RequestMeter,
        *,
        trace_id: str = "",
        owner: str = "",
    ) -> None:
        """number: by arrival. digest: tells another request with the same id from a repetition.

        owner: whose it is; see GenerationRequest.
        """
        self.trace_id = trace_id
        self.request_id = request_id
        self.owner = owner
        self.work: Work | None = None
        self.name = owned_name(owner, request_id)
        self.number = number
        self.digest = digest
        self.answers: list[RunningAnswer] = []
        self.changed = Notifier()
        self.over = asyncio.Event()
        self.failure: TidePipeError | None = None
        self.ended_at: float | None = None
        self.brought_bytes = 0
        self.arrived = clock()
        self._sampling = sampling
        self._host = host
        self._clock = clock
        self._meter = meter

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
        return self.answers[0].usage.prompt_tokens if self.answers else 0

    @property
    def bytes_held(self) -> int:
        """What it takes to remember it; its answers have one prompt."""
        prompt = 4 * len(self.answers[0].prompt) if self.answers else 0
        return OBJECT_BYTES + prompt + sum(OBJECT_BYTES + answer.bytes_held for answer in self.answers)

    @property
    def usage(self) -> Usage:
        """What all answers took together."""
        parts = [answer.usage for answer in self.answers]
        if not parts:
            return Usage(prompt_tokens=0, output_tokens=0)
        return Usage(
            prompt_tokens=parts[0].prompt_tokens,
            output_tokens=sum(part.output_tokens for part in parts),
            ttft_ms=min(part.ttft_ms for part in parts),
            total_ms=max(part.total_ms for part in parts),
            preemptions=sum(part.preemptions for part in parts),
        )

    def begin(self, admitted: AdmittedRequest) -> None:
        """Create the answers; they still have to be submitted."""
        self.answers = [
            RunningAnswer(
                key=f"{self.name}/{index}",
                order=(self.number, index),
                prompt=admitted.prompt,
                features=admitted.features,
                sampling=sampling,
                text=admitted.new_text(),
                owner=self,
                clock=self._clock,
                arrived=self.arrived,
                meter=self._meter,
                ttft_s=admitted.ttft_s,
                tpot_s=admitted.tpot_s,
                piece_gap_s=admitted.piece_gap_s,
                tenant=self.owner,
            )
            for index, sampling in enumerate(admitted.samplings)
        ]
        self._meter.admitted(len(admitted.prompt))
        self.changed.notify_all()

    def cancel(self) -> None:
        """End all answers where they stand; they are empty if it was not admitted yet."""
        if not self.answers:
            samplings = (self._sampling,) * self._sampling.n
            self.begin(AdmittedRequest(array("I"), samplings, new_text=lambda: None))
        for answer in self.answers:
            if not answer.finished:
                answer.finish(FinishReason.CANCELLED)
                self._host.withdraw(answer)

    def fail(self, error: TidePipeError) -> None:
        """End everything with an error, which every listener gets. Part of AnswerOwner."""
        if self.ended:
            return
        self.failure = error
        self._end()
        for answer in self.answers:
            if not answer.finished:
                answer.finish(FinishReason.ERROR, error=str(error), shed=self.shed)
                self._host.withdraw(answer)

    def answer_changed(self) -> None:
        """Part of AnswerOwner."""
        self.changed.notify_all()
        if self.work is not None and len(self.answers) > 1 and not self.ended:
            self.work.running(sum(not answer.finished for answer in self.answers))
        if not self.ended and all(answer.finished for answer in self.answers):
            self._end()

    def _end(self) -> None:
        self.ended_at = self._clock()
        self.over.set()
        self._host.entry_ended(self)
        self.changed.notify_all()
