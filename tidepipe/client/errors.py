"""Errors that only a client can have, beside those of `tidepipe_common.errors`."""

from __future__ import annotations

from tidepipe_common.errors import TidePipeError, UnavailableError


class DeadlineExceededError(UnavailableError, TimeoutError):
    """The answer was not complete within the request's timeout."""


class RequestFailedError(TidePipeError):
    """The service accepted the request but could not answer it; the message says why."""


class RequestCancelledError(TidePipeError):
    """Somebody cancelled the request before its answer was complete."""


class StreamGapError(Exception):
    """Internal: a stream skipped something; asking again mends it."""
