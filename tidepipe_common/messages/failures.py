"""How errors look in the Messages API."""

from __future__ import annotations

from tidepipe_common.messages.answers import MessageError
from tidepipe_common.openai.failures import error_response

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def message_error(status: int, message: str, request_id: str | None = None) -> MessageError:
    """The body of an error with that HTTP status."""
    other = "api_error" if status >= 500 else "invalid_request_error"
    return {
        "type": "error",
        "error": {"type": _KINDS.get(status, other), "message": message},
        "request_id": request_id,
    }


def message_failure(
    error: BaseException, request_id: str | None = None
) -> tuple[int, MessageError, dict[str, str]]:
    """Status, body and additional headers for an error, as `error_response` has them in OpenAI's words."""
    status, body, headers = error_response(error)
    return status, message_error(status, body["error"]["message"], request_id), headers
