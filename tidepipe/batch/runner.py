"""The run of a batch file: bounded, durable, in any order; the output has the order of the input."""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tidepipe.batch.bodies import BodyWriter
from tidepipe.batch.input_file import InputLine, read_lines
from tidepipe.batch.intake import Intake
from tidepipe.batch.measure import RunClock, cluster_deltas
from tidepipe.batch.progress_file import LineOutcome, ProgressFile
from tidepipe.client.async_batch import run_batch
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.collect import Collector
from tidepipe.client.errors import DeadlineExceededError, RequestCancelledError
from tidepipe.client.requests import WHOLE_ANSWER_GAP_MS, make_request
from tidepipe.client.status import ClusterStatus
from tidepipe.client.types import Completion
from tidepipe_common.errors import InvalidRequestError, TidePipeError, UnavailableError
from tidepipe_common.openai.batch import BatchItem, BatchLineError, error_line, failure_line

STATUS_INTERVAL_S = 1.0
_AFTERWARDS_TRIES = 5
_CUTS = 5
"""A line is asked again when somebody cancels it, such as the end of an earlier run; but not for ever."""


class BatchDisplay(Protocol):
    """Shows how a batch goes."""

    def finished(self, outcome: LineOutcome, *, resumed: bool) -> None:
        """A line is done, now or (resumed) in an earlier run."""

    def tokens(self, count: int) -> None:
        """Output tokens came in."""

    def status(self, status: ClusterStatus) -> None:
        """How the cluster stands."""


@dataclass(slots=True)
class Totals:
    """Counts of a batch; tokens of this run apart from those of earlier ones."""

    requests: int = 0
    failed: int = 0
    resumed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    run_prompt_tokens: int = 0
    run_output_tokens: int = 0

    def add(self, outcome: LineOutcome, *, resumed: bool) -> None:
        """Count a finished line."""
        self.requests += 1
        self.failed += outcome.failed
        self.resumed += resumed
        self.prompt_tokens += outcome.prompt_tokens
        self.output_tokens += outcome.output_tokens
        self.cached_tokens += outcome.cached_tokens
        if not resumed:
            self.run_prompt_tokens += outcome.prompt_tokens
            self.run_output_tokens += outcome.output_tokens

    def report(self, seconds: float) -> dict[str, Any]:
        """The part of the report that needs no cluster. Rates are those of this run."""
        run_tokens = self.run_prompt_tokens + self.run_output_tokens
        return {
            "requests": self.requests,
            "failed": self.failed,
            "resumed": self.resumed,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "cached_tokens": self.cached_tokens,
            "seconds": round(seconds, 3),
            "output_tokens_per_s": round(self.run_output_tokens / seconds, 2) if seconds else 0.0,
            "total_tokens_per_s": round(run_tokens / seconds, 2) if seconds else 0.0,
        }


class BatchRun:
    """One run over one input file; `totals` says how far it is."""

    def __init__(
        self,
        source: Path,
        progress: ProgressFile,
        client: AsyncClient,
        display: BatchDisplay,
        *,
        concurrency: int,
        timeout_s: float,
        model_sources: tuple[str, ...] = (),
    ) -> None:
        """model_sources: names and paths of the model, besides the one under which it is served."""
        self.totals = Totals()
        self._source = source
        self._progress = progress
        self._client = client
        self._display = display
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._model_sources = model_sources
        self._clock = RunClock()
        self._numbers = array("Q")
        self._pending: dict[int, tuple[InputLine, BatchItem]] = {}

    async def run(self) -> dict[str, Any]:
        """Answer every line that is not answered yet, write the output file, return the report.

        UnavailableError if the service is lost for good; what is finished is kept.
        """
        served = [model.name for model in await self._client.models()]
        if not served:
            raise UnavailableError(
                "no model is served there yet: `tidepipe admin status` shows what is being started"
            )
        names = (*served, *self._model_sources)
        before = await self._client.status()
        watcher = asyncio.create_task(self._watch(), name="watch the cluster")
        try:
            await self._answer_all(
                Intake(self._progress.run_id, served, self._model_sources), BodyWriter(served[0], names)
            )
            after = await self._status_afterwards() or before
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        await asyncio.to_thread(self._progress.finish, self._numbers)
        seconds = self._clock.seconds
        return {
            **self.totals.report(seconds),
            "model": served[0],
            **cluster_deltas(before, after, seconds),
        }

    async def _answer_all(self, intake: Intake, bodies: BodyWriter) -> None:
        results = run_batch(self._work(intake), self._answer, self._concurrency)
        async with contextlib.aclosing(results):
            async for result in results:
                line, item = self._pending.pop(result.index)
                line_id = intake.line_id(line.number)
                if result.completion is not None:
                    usage = result.completion.usage
                    outcome = LineOutcome(
                        line.number,
                        line.digest,
                        False,
                        usage.prompt_tokens,
                        usage.output_tokens,
                        usage.cached_tokens,
                    )
                    await bodies.prepare(item)
                    try:
                        self._record(outcome, bodies.response(line_id, item, result.completion))
                    except InvalidRequestError as refusal:  # dimensions that the model's vectors do not have
                        failed = LineOutcome(line.number, line.digest, True)
                        self._record(failed, failure_line(line_id, item, refusal))
                    continue
                error = result.error or TidePipeError("neither answer nor error")
                if isinstance(error, UnavailableError) and not isinstance(error, DeadlineExceededError):
                    # Not the request's fault: the next run shall try it again.
                    raise error
                self._record(LineOutcome(line.number, line.digest, True), failure_line(line_id, item, error))

    def _work(self, intake: Intake) -> Iterator[BatchItem]:
        """The requests that are still to be answered; what needs no service is settled on the way."""
        index = 0
        for line in read_lines(self._source):
            self._numbers.append(line.number)
            parsed = intake.take(line)
            earlier = self._progress.find(line.number, line.digest)
            if earlier is not None:
                self.totals.add(earlier, resumed=True)
                self._display.finished(earlier, resumed=True)
            elif isinstance(parsed, BatchLineError):
                output_line = error_line(intake.line_id(line.number), parsed, intake.request_id(line))
                self._record(LineOutcome(line.number, line.digest, True), output_line)
            else:
                self._pending[index] = (line, parsed)
                index += 1
                yield parsed

    async def _answer(self, item: BatchItem) -> Completion:
        """The whole answer. UnavailableError if it is cancelled again and again."""
        for _ in range(_CUTS):
            with contextlib.suppress(RequestCancelledError):
                return await self._ask(item)
        raise UnavailableError(f"the request of {item.custom_id!r} was cancelled {_CUTS} times")

    async def _ask(self, item: BatchItem) -> Completion:
        request = make_request(
            item.request.prompt,
            item.request.sampling,
            request_id=item.request.request_id,
            model=item.request.model or "",
            keep_special_tokens=item.request.keep_special_tokens,
            tools=item.request.tools,
            tool_choice=item.request.tool_choice,
            template=item.request.template,
            piece_gap_ms=WHOLE_ANSWER_GAP_MS,
            user=item.request.client,
            clamp_max_tokens=item.request.clamp_max_tokens,
            cache_salt=item.request.cache_salt,
            more_prompts=item.request.more_prompts,
        )
        each = item.request.sampling.n if item.request.more_prompts else 0
        collector = Collector(request.request_id, each)
        self._clock.dispatched(time.monotonic())
        async with self._client.stream_request(request, timeout=self._timeout_s) as stream:
            async for event in stream:
                collector.add(event)
                if event.token_ids:
                    self._clock.token(time.monotonic())
                    self._display.tokens(len(event.token_ids))
        return collector.completion()

    def _record(self, outcome: LineOutcome, output_line: bytes) -> None:
        self._progress.append(outcome, output_line)
        self.totals.add(outcome, resumed=False)
        self._display.finished(outcome, resumed=False)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TidePipeError):
                self._display.status(await self._client.status())
            await asyncio.sleep(STATUS_INTERVAL_S)

    async def _status_afterwards(self) -> ClusterStatus | None:
        for _ in range(_AFTERWARDS_TRIES):
            with contextlib.suppress(TidePipeError):
                return await self._client.status()
            await asyncio.sleep(STATUS_INTERVAL_S)
        return None
