"""The way of errors over gRPC: TidePipe errors to statuses at the server, and back at the client."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import grpc

from tidepipe_common.errors import (
    ConfigError,
    ContextLengthError,
    IncompatibleError,
    InvalidRequestError,
    ModelError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    StorageError,
    TidePipeError,
    UnauthenticatedError,
    UnavailableError,
)

CLOSED = "the connection was closed"
RETRY_AFTER = "retry-after-ms"
PARAM = "tidepipe-param"
KIND = "tidepipe-kind"
"""Tells kinds of errors apart that have one status."""
TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""The other side may be there again in a moment."""
_TOO_LARGE = "message larger than max"
_NOBODY = re.compile(
    r"failed to connect to all addresses; last error: [A-Z]+: ipv[46]:(\S+): "
    r"(?:Failed to connect to remote host: )?(.+)"
)

_CODES: tuple[tuple[type[TidePipeError], grpc.StatusCode], ...] = (
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (StorageError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (IncompatibleError, grpc.StatusCode.FAILED_PRECONDITION),
    (ModelError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
)


_KINDS: dict[str, type[ContextLengthError] | type[ModelNotFoundError]] = {
    kind.__name__: kind for kind in (ContextLengthError, ModelNotFoundError)
}


def trailing_metadata(error: TidePipeError) -> tuple[tuple[str, str], ...]:
    """What travels with the status, for `from_rpc_error`."""
    metadata = []
    if isinstance(error, OverloadedError):
        metadata.append((RETRY_AFTER, str(error.retry_after_ms)))
    if isinstance(error, InvalidRequestError) and error.param:
        # Metadata is ASCII, and so are the names of all fields but those that somebody invented.
        metadata.append((PARAM, ascii(error.param)[1:-1]))
    if type(error).__name__ in _KINDS:
        metadata.append((KIND, type(error).__name__))
    return tuple(metadata)


def status_code(error: TidePipeError) -> grpc.StatusCode:
    """The gRPC status that says what `error` says."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


def _in_words(text: str) -> str:
    """What gRPC says of a connection that it cannot make, for people."""
    if (match := _NOBODY.fullmatch(text)) is None:
        return text
    return f"nobody answers at {unquote(match[1])}: {match[2][:1].lower()}{match[2][1:]}"


def from_rpc_error(error: grpc.aio.AioRpcError | grpc.RpcError) -> TidePipeError:
    """The TidePipe error behind a failed call.

    Deadlines and lost connections become UnavailableError: the caller may try again.
    """
    code = error.code()
    text = error.details() or code.name
    pairs: Any = error.trailing_metadata() or ()
    metadata: dict[str, Any] = dict(pairs)
    kind = _KINDS.get(str(metadata.get(KIND)))
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            wrong = ContextLengthError if kind is ContextLengthError else InvalidRequestError
            return wrong(text, str(metadata[PARAM]) if PARAM in metadata else None)
        case grpc.StatusCode.NOT_FOUND:
            return ModelNotFoundError(text) if kind is ModelNotFoundError else NotFoundError(text)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _TOO_LARGE in text:
            # gRPC's own, at either end. Waiting makes no message smaller.
            return InvalidRequestError(f"the message is too large: {text}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            after = str(metadata.get(RETRY_AFTER))
            # Whoever answers may be no service of ours.
            return OverloadedError(text, int(after) if after.isascii() and after.isdigit() else 1000)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return UnavailableError(_in_words(text))
        case grpc.StatusCode.UNAUTHENTICATED:
            return UnauthenticatedError(text)
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDeniedError(text)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return IncompatibleError(text)
        case _:
            return TidePipeError(f"{code.name}: {text}")


@contextlib.contextmanager
def translated(unavailable: str = "") -> Iterator[None]:
    """Around calls: the TidePipe error behind one that fails is raised in its place.

    unavailable: what an UnavailableError says first, such as who does not answer.
    """
    try:
        yield
    except grpc.RpcError as error:
        translation = from_rpc_error(error)
        if unavailable and isinstance(translation, UnavailableError):
            translation = UnavailableError(f"{unavailable}: {translation}")
        raise translation from error
    except grpc.aio.UsageError as error:
        # A call begun on a channel that was closed just before.
        if "closed" not in str(error):
            raise
        raise UnavailableError(CLOSED) from error
    except asyncio.CancelledError as error:
        # A channel that is closed cancels its calls. Who waits was not cancelled and must hear of it: a
        # handler that ends by this error leaves its own caller waiting until the deadline.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise UnavailableError(CLOSED) from error
