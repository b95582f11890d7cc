"""How errors travel: TidePipe errors to gRPC statuses at the server, and back at the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from common.errors import (
    ConfigError,
    IncompatibleError,
    InvalidRequestError,
    ModelError,
    NotFoundError,
    OverloadedError,
    TidePipeError,
    UnavailableError,
)

RETRY_AFTER = "retry-after-ms"
PARAM = "tidepipe-param"

_CODES: tuple[tuple[type[TidePipeError], grpc.StatusCode], ...] = (
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (IncompatibleError, grpc.StatusCode.FAILED_PRECONDITION),
    (ModelError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
)

log = structlog.get_logger()


def status_code(error: TidePipeError) -> grpc.StatusCode:
    """The gRPC status that says what `error` says."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


def from_rpc_error(error: grpc.aio.AioRpcError | grpc.RpcError) -> TidePipeError:
    """The TidePipe error behind a failed call.

    Deadlines and lost connections become UnavailableError: the caller may try again.
    """
    code = error.code()
    text = error.details() or code.name
    pairs: Any = error.trailing_metadata() or ()
    metadata: dict[str, Any] = dict(pairs)
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequestError(text, str(metadata[PARAM]) if PARAM in metadata else None)
        case grpc.StatusCode.NOT_FOUND:
            return NotFoundError(text)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return OverloadedError(text, int(metadata.get(RETRY_AFTER, 1000)))
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return UnavailableError(text)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return IncompatibleError(text)
        case _:
            return TidePipeError(f"{code.name}: {text}")


if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Turns TidePipe errors raised by a handler into statuses; logs anything else as a defect."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call. (The handlers' types differ for each of the four kinds: Any.)"""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        incoming = "stream" if handler.request_streaming else "unary"
        if handler.response_streaming:
            inner_stream = getattr(handler, f"{incoming}_stream")

            async def streaming(request: Any, context: Context) -> AsyncIterator[Any]:
                try:
                    async for response in inner_stream(request, context):
                        yield response
                except Exception as error:
                    await _abort(method, context, error)

            return handler._replace(**{f"{incoming}_stream": streaming})
        inner_unary = getattr(handler, f"{incoming}_unary")

        async def unary(request: Any, context: Context) -> Any:
            try:
                return await inner_unary(request, context)
            except Exception as error:
                await _abort(method, context, error)

        return handler._replace(**{f"{incoming}_unary": unary})


async def _abort(method: str, context: Context, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, TidePipeError):
        metadata: tuple[tuple[str, str], ...] = ()
        if isinstance(error, OverloadedError):
            metadata = ((RETRY_AFTER, str(error.retry_after_ms)),)
        elif isinstance(error, InvalidRequestError) and error.param:
            metadata = ((PARAM, error.param),)
        await context.abort(status_code(error), str(error), metadata)
    log.exception("handler failed", method=method)
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error in {method}: {type(error).__name__}")
