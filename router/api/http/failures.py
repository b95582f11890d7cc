"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from router.api.http.body import BodyTooLargeError, MediaTypeError
from tidepipe_common.errors import TidePipeError
from tidepipe_common.openai.failures import error_body, error_response

Handler = Callable[[Request], Awaitable[Response]]

log = structlog.get_logger()


def failure(error: Exception, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """Response for an error. One that was not made for users is a defect: logged, not shown.

    headers: additional ones.
    """
    if isinstance(error, BodyTooLargeError):
        body = error_body(str(error), "invalid_request_error", code="body_too_large")
        # A part of the body may be left unread.
        return JSONResponse(body, 413, {**headers, "connection": "close"})
    if isinstance(error, MediaTypeError):
        body = error_body(str(error), "invalid_request_error", code="unsupported_media_type")
        return JSONResponse(body, 415, {**headers, "connection": "close"})
    if not isinstance(error, TidePipeError):
        log.exception("HTTP request failed", exc_info=error)
    status, body, special = error_response(error)
    return JSONResponse(body, status, {**headers, **special})


def http_failure(request: Request, error: Exception) -> Response:
    """Response for an unknown path or a wrong method."""
    status, reason = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "error")
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    message = f"{reason}: {request.method} {request.url.path}"
    code = "not_found"
    if status == 405:
        code = "method_not_allowed"
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return JSONResponse(error_body(message, "invalid_request_error", code=code), status, headers)


def _methods(request: Request) -> set[str]:
    """What the path can be asked with, by any of its routes."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in fitting for method in route.methods or ()}


def guarded(handle: Handler) -> Handler:
    """The handler, whose errors become responses."""

    async def guard(request: Request) -> Response:
        try:
            return await handle(request)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        except Exception as error:
            return failure(error)

    return guard
