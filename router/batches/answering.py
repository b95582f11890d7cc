"""The answering of one line of a batch, through the router's own request table."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import structlog

from router.batches.deaths import Suspect
from router.batches.lines import AnsweredLine, Line
from router.batches.records import BatchRecord
from tidepipe_common.aside import beside
from tidepipe_common.errors import (
    OverloadedError,
    StorageError,
    TidePipeError,
    UnauthenticatedError,
    UnavailableError,
)
from tidepipe_common.openai.batch import (
    BatchItem,
    BatchLineError,
    ItemBody,
    error_line,
    failure_line,
    parse_line,
    response_line,
    seeded,
)
from tidepipe_common.openai.embeddings import NUMBER_BYTES
from tidepipe_common.openai.responses import answer_bytes
from tidepipe_common.types.request_ids import draw_request_id

UNAVAILABLE_S = 1.0

Reading = Callable[[], contextlib.AbstractAsyncContextManager[None]]
"""What a request is read, checked and tokenized within."""
Answer = Callable[[BatchItem, Reading], Awaitable[ItemBody]]
"""Response body for a request; raises a TidePipeError."""

log = structlog.get_logger()


async def answer_line(
    answer: Answer,
    batch: BatchRecord,
    line: Line,
    reading: Reading,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AnsweredLine:
    """The output line. Waits as long as the service is full or away: the batch's time limit is the caller's.

    The request's seed depends on batch and line alone, so that a line run again gives the same answer. Its id
    is drawn: nobody else may fetch the answer, or have a request of that name already.
    """
    line_id = _line_id(batch, line)
    request_id = draw_request_id("batch-")
    parsed = await beside(
        len(line.request), functools.partial(parse_line, line.request, line.number, request_id)
    )
    if isinstance(parsed, BatchLineError):
        return AnsweredLine(line.number, error_line(line_id, parsed, request_id), failed=True)
    item = seeded(parsed, f"{batch.id}-{line.number}")
    item = replace(item, request=replace(item.request, owner=batch.owner or "", background=True))
    while True:
        try:
            body = await answer(item, reading)
            written = await beside(_size(item, body), functools.partial(response_line, line_id, item, body))
            return AnsweredLine(line.number, written, failed=False)
        except OverloadedError as error:
            await pause(error.retry_after_ms / 1000)
        except (UnavailableError, UnauthenticatedError):  # its key has ended: so will the batch
            await pause(UNAVAILABLE_S)
        except StorageError:
            raise  # not this request's: none can be answered
        except Exception as error:
            if not isinstance(error, TidePipeError):
                log.exception("a batch's request failed", request=request_id)
            return AnsweredLine(line.number, failure_line(line_id, item, error), failed=True)


def _size(item: BatchItem, body: ItemBody) -> int:
    """About how large the body is in JSON."""
    read = cast(Mapping[str, Any], body)
    usage = read.get("usage") or {}
    output = usage.get("completion_tokens") or usage.get("output_tokens") or 0
    numbers = sum(len(one["embedding"]) for one in read.get("data", ()))
    written = answer_bytes(item.request, output, usage.get("prompt_tokens", 0))
    return item.request.bytes_held + written + NUMBER_BYTES * numbers


def expired_line(batch: BatchRecord, line: Line) -> AnsweredLine:
    """The output line of a request that was not answered within the batch's time."""
    request_id = draw_request_id("batch-")
    parsed = parse_line(line.request, line.number, request_id)
    text = f"not answered within the batch's completion window of {batch.window}"
    error = BatchLineError(parsed.custom_id, text, "batch_expired")
    return AnsweredLine(line.number, error_line(_line_id(batch, line), error, request_id), failed=True)


def given_up_line(batch: BatchRecord, suspect: Suspect) -> AnsweredLine:
    """The output line of a request at which routers died. It is not looked at: that may be what kills."""
    number = suspect.line.number
    text = f"the router ended {suspect.deaths} times while it worked on this request; it is not tried again"
    custom_id = suspect.custom_id.decode("utf-8", "surrogatepass")
    error = BatchLineError(custom_id, text, "request_given_up")
    request_id = draw_request_id("batch-")
    return AnsweredLine(number, error_line(_line_id(batch, suspect.line), error, request_id), failed=True)


def _line_id(batch: BatchRecord, line: Line) -> str:
    return f"batch_req_{batch.id.removeprefix('batch_')}_{line.number}"
