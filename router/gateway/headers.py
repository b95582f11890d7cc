"""Request headers that mean something to TidePipe."""

from __future__ import annotations

import dataclasses
import uuid

from starlette.datastructures import Headers

from common.errors import InvalidRequestError
from common.request import GenerationRequest
from router.edge.wire import check_request_id

REQUEST_ID = "x-request-id"
KEY = "authorization"
TTFT = "x-slo-ttft-ms"
TPOT = "x-slo-tpot-ms"


def request_id(headers: Headers) -> str:
    """The caller's own id, or a new one. InvalidRequestError if it cannot be an id."""
    wanted = headers.get(REQUEST_ID) or uuid.uuid4().hex
    check_request_id(wanted)
    return wanted


def with_targets(request: GenerationRequest, headers: Headers) -> GenerationRequest:
    """The request with its latency targets. InvalidRequestError names the header that is wrong."""
    if TTFT not in headers and TPOT not in headers:
        return request
    wanted = dataclasses.replace(request, ttft_ms=_number(headers, TTFT), tpot_ms=_number(headers, TPOT))
    try:
        wanted.check()
    except InvalidRequestError as error:
        header = {"ttft_ms": TTFT, "tpot_ms": TPOT}.get(error.param or "")
        if header is None:
            raise
        raise InvalidRequestError(f"header {header}: {error}", header) from None
    return wanted


def _number(headers: Headers, name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidRequestError(
            f"header {name} must be a number of milliseconds, got {text[:40]!r}", name
        ) from None
