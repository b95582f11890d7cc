"""The interceptor around every call that a server takes: let in or refused, timed, its errors mapped."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import grpc
import structlog

from tidepipe_common.errors import InvalidRequestError, TidePipeError
from tidepipe_common.limits import MAX_DETAIL_CHARACTERS
from tidepipe_common.memory import forget_tracebacks
from tidepipe_common.rpc.status import status_code, trailing_metadata
from tidepipe_common.rpc.unread import Unread, read_message, unread
from tidepipe_common.security.principals import rule_of
from tidepipe_common.telemetry.calls import CallMeter
from tidepipe_common.text.text import repaired

log = structlog.get_logger()

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class Guard(Protocol):
    """Decides who may make which call."""

    def admit(self, method: str, context: Context) -> Callable[[], None]:
        """Let the call of `/package.Service/Method` in; returns what is to be called when it is over.

        Raises the TidePipeError that the caller gets if it may not.
        """
        ...


class CallInterceptor(grpc.aio.ServerInterceptor):
    """One wrapper for everything, so that streams pass through one extra generator and not through three."""

    def __init__(self, guard: Guard | None = None, meter: CallMeter | None = None) -> None:
        self._guard = guard
        self._meter = meter

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
        one_message = not handler.request_streaming
        incoming = "unary" if one_message else "stream"
        # Services may say more at once than clients.
        counted = bool(rule_of(method).key_roles)
        if (parse := handler.request_deserializer) is not None:
            # Who reads a stream message by message is told of one that is none where it reads.
            kept = unread(parse) if one_message else functools.partial(read_message, parse)
            handler = handler._replace(request_deserializer=kept)
        # gRPC gives a call without its one message no status at all, and its caller would wait for ever. As
        # streams, which look the same from outside, all calls get one.
        handler = handler._replace(request_streaming=True)
        if handler.response_streaming:
            inner_stream = getattr(handler, f"{incoming}_stream")

            async def streaming(request: Any, context: Context) -> AsyncIterator[Any]:
                if one_message:
                    request = await context.read()
                call = _Call(method, context, self._guard, self._meter)
                try:
                    call.begin()
                    if one_message:
                        request = await _read(request, counted=counted)
                    async for response in inner_stream(request, context):
                        yield response
                    call.succeeded()
                except Exception as error:
                    request = None
                    await call.abort(error)
                finally:
                    call.end()

            return handler._replace(stream_stream=streaming)
        inner_unary = getattr(handler, f"{incoming}_unary")

        async def unary(request: Any, context: Context) -> Any:
            if one_message:
                request = await context.read()
            call = _Call(method, context, self._guard, self._meter)
            try:
                call.begin()
                if one_message:
                    request = await _read(request, counted=counted)
                response = await inner_unary(request, context)
                call.succeeded()
            except Exception as error:
                request = None
                await call.abort(error)
            else:
                return response
            finally:
                call.end()

        return handler._replace(stream_unary=unary)


async def _read(request: Any, *, counted: bool) -> Any:
    """The one message of a call; see `unread`."""
    if request is grpc.aio.EOF:
        raise InvalidRequestError("the call ended without a message")
    return await request.read(counted=counted) if isinstance(request, Unread) else request


class _Call:
    """One call, from its arrival to its end."""

    def __init__(self, method: str, context: Context, guard: Guard | None, meter: CallMeter | None) -> None:
        self._method = method
        self._context = context
        self._guard = guard
        self._meter = meter
        self._began = time.perf_counter()
        self._release: Callable[[], None] | None = None
        # Until something else is known: the caller went away.
        self._code = grpc.StatusCode.CANCELLED

    def begin(self) -> None:
        if self._guard is not None:
            self._release = self._guard.admit(self._method, self._context)

    def succeeded(self) -> None:
        # A handler may have set another code without raising. (0: none; the stubs do not know of numbers.)
        code: Any = self._context.code()
        self._code = code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.OK

    async def abort(self, error: Exception) -> NoReturn:
        """End the call with the status that says what `error` says; a defect is logged and not shown."""
        if isinstance(error, grpc.aio.AbortError):
            self.succeeded()
            raise error
        if isinstance(error, TidePipeError):
            # grpc's own records of the call refer to the error that ends it, and those to the call: a circle.
            forget_tracebacks(error)
            self._code = status_code(error)
            details = repaired(str(error))[:MAX_DETAIL_CHARACTERS]
            await self._context.abort(self._code, details, trailing_metadata(error))
        self._code = grpc.StatusCode.INTERNAL
        log.exception("handler failed", method=self._method)
        detail = f"internal error in {self._method}: {type(error).__name__}"
        await self._context.abort(self._code, detail)

    def end(self) -> None:
        if self._release is not None:
            self._release()
        if self._meter is not None:
            self._meter.handled(self._method, self._code.name, time.perf_counter() - self._began)
