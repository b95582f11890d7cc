"""Request headers that mean something to TidePipe."""

from __future__ import annotations

import dataclasses

from starlette.datastructures import Headers

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.numerals import decimal
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.request_ids import draw_request_id

REQUEST_ID = "x-request-id"
IDEMPOTENCY_KEY = "idempotency-key"
MAX_ID_CHARACTERS = 256
KEY = "authorization"
TTFT = "x-slo-ttft-ms"
TPOT = "x-slo-tpot-ms"


def trace_id(headers: Headers) -> str:
    """What the caller and its proxies call the request: for answers and logs, so they may repeat it.

    A new one if there is none that can be printed.
    """
    wanted = headers.get(REQUEST_ID, "")
    return wanted if _is_printable(wanted) else draw_request_id()


def idempotency_key(headers: Headers) -> str | None:
    """None: the request is none of those that are asked again. InvalidRequestError if it cannot be a key."""
    key = headers.get(IDEMPOTENCY_KEY)
    if key is not None and not _is_printable(key):
        raise InvalidRequestError(
            f"header Idempotency-Key must have 1 to {MAX_ID_CHARACTERS} printable characters",
            "Idempotency-Key",
        )
    return key


def _is_printable(text: str) -> bool:
    return 0 < len(text) <= MAX_ID_CHARACTERS and text.isprintable()


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
    if (number := decimal(text)) is None:
        raise InvalidRequestError(f"header {name} must be a number of milliseconds, got {text[:40]!r}", name)
    return number
