"""/v1/batches: files of requests, answered in the background."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.api.http.body import read_json
from router.api.http.failures import guarded
from router.api.http.paging import batch_list, page_of
from router.batches import lines
from router.batches.jobs import BatchJobs
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.openai.batch import PARSERS
from tidepipe_common.openai.metadata import Metadata
from tidepipe_common.openai.validation import Refusal, StrictModel, validate
from tidepipe_common.security.caller import current

MAX_BODY_BYTES = 128 * 1024
"""Metadata at all its limits, every character escaped, is less."""
MAX_WINDOW_HOURS = 24 * 30
_WINDOW = "^([1-9]|[1-9][0-9]|[1-6][0-9]{2}|7[01][0-9]|720)h$"
"""1h to MAX_WINDOW_HOURS."""
_REFUSED = {"output_expires_after": Refusal("not supported: delete the files when they are not needed")}


class BatchBody(StrictModel):
    """Body of POST /v1/batches."""

    input_file_id: str
    endpoint: Annotated[str, WithJsonSchema({"enum": list(PARSERS)})]
    completion_window: Annotated[str, WithJsonSchema({"type": "string", "pattern": _WINDOW})]
    metadata: Metadata | None = None


class BatchEndpoints:
    """Batches are known by their ids, also after a restart."""

    def __init__(self, jobs: BatchJobs) -> None:
        self._jobs = jobs

    def routes(self) -> list[Route]:
        """All paths."""
        one = "/v1/batches/{batch_id}"
        return [
            Route("/v1/batches", guarded(self.create), methods=["POST"]),
            Route("/v1/batches", guarded(self.listing), methods=["GET"]),
            Route(one, guarded(self.show), methods=["GET"]),
            Route(one + "/cancel", guarded(self.cancel), methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """Begin a batch."""
        body = await read_json(request, lambda read: validate(BatchBody, read, _REFUSED, ()), MAX_BODY_BYTES)
        if body.endpoint not in PARSERS:
            raise InvalidRequestError(
                f"endpoint must be one of {', '.join(PARSERS)}, got {body.endpoint[:100]!r}", "endpoint"
            )
        record = await self._jobs.create(
            body.endpoint, body.input_file_id, _hours(body.completion_window), body.metadata, current()
        )
        return JSONResponse(record.body())

    async def listing(self, request: Request) -> Response:
        """Pages, newest first unless asked otherwise."""
        page = page_of(request, most=100, default=20)
        found = await self._jobs.database.run(
            lines.listing, page.after, page.limit + 1, page.newest_first, current()
        )
        return JSONResponse(batch_list([record.body() for record in found], page.limit))

    async def show(self, request: Request) -> Response:
        """How far a batch is."""
        record = await self._jobs.database.run(lines.get, request.path_params["batch_id"], current())
        return JSONResponse(record.body())

    async def cancel(self, request: Request) -> Response:
        """Answer no more of its requests."""
        return JSONResponse((await self._jobs.cancel(request.path_params["batch_id"], current())).body())


def _hours(window: str) -> int:
    if re.fullmatch(_WINDOW, window) is None:
        raise InvalidRequestError(
            f"completion_window must be '24h', or another number of hours up to {MAX_WINDOW_HOURS}, "
            f"got {window[:40]!r}",
            "completion_window",
        )
    return int(window.removesuffix("h"))
