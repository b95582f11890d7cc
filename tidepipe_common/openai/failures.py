"""How errors look in the OpenAI API."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tidepipe_common.errors import (
    ContextLengthError,
    InvalidRequestError,
    KeyReusedError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    PreviousResponseError,
    QuotaError,
    StorageBrokenError,
    StorageError,
    TidePipeError,
    UnauthenticatedError,
    UnavailableError,
)

if TYPE_CHECKING:
    # Who only tells errors needs no pydantic.
    from tidepipe_common.openai.answers import Error

_MAPPING: dict[type[TidePipeError], tuple[int, str, str]] = {
    KeyReusedError: (422, "invalid_request_error", "idempotency_key_reused"),
    PreviousResponseError: (400, "invalid_request_error", "previous_response_not_found"),
    ContextLengthError: (400, "invalid_request_error", "context_length_exceeded"),
    ModelNotFoundError: (404, "invalid_request_error", "model_not_found"),
    InvalidRequestError: (400, "invalid_request_error", "invalid_value"),
    NotFoundError: (404, "invalid_request_error", "not_found"),
    OverloadedError: (429, "rate_limit_error", "rate_limit_exceeded"),
    UnauthenticatedError: (401, "authentication_error", "invalid_api_key"),
    PermissionDeniedError: (403, "permission_error", "permission_denied"),
    StorageBrokenError: (500, "server_error", "storage_broken"),
    QuotaError: (413, "invalid_request_error", "storage_quota_exceeded"),
    StorageError: (507, "server_error", "insufficient_storage"),
    UnavailableError: (503, "service_unavailable_error", "service_unavailable"),
}
UNAVAILABLE_RETRY_S = 1
"""What a 503 says in `retry-after`: another router, or this one's successor, is there in a moment."""
_OTHER = (500, "server_error", "internal_error")


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> Error:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def http_status(error: BaseException) -> int:
    """HTTP status of an error."""
    return _entry(error)[0]


def error_code(error: BaseException) -> str:
    """Short name of an error, for programs."""
    return _entry(error)[2]


def error_response(error: BaseException) -> tuple[int, Error, dict[str, str]]:
    """Status, body and additional headers for an error. Errors not made for users are not shown to them."""
    status, kind, code = _entry(error)
    message = str(error) if isinstance(error, TidePipeError) else "internal error; see the server's log"
    param = error.param if isinstance(error, InvalidRequestError) else None
    headers = {}
    if isinstance(error, UnauthenticatedError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, OverloadedError):
        # Retry-After has whole seconds; OpenAI's clients prefer the finer header where there is one.
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_ms / 1000)))
        headers["retry-after-ms"] = str(error.retry_after_ms)
    elif isinstance(error, UnavailableError):
        headers["retry-after"] = str(UNAVAILABLE_RETRY_S)
    return status, error_body(message, kind, param, code), headers


def _entry(error: BaseException) -> tuple[int, str, str]:
    # Kinds stand before those that they are kinds of.
    return next((entry for kind, entry in _MAPPING.items() if isinstance(error, kind)), _OTHER)
