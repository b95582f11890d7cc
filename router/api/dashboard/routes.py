"""The page's files and its data, as routes of the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from router.api.dashboard.events import EventsEndpoint
from router.api.dashboard.feed import PageFeed
from router.api.http.failures import failure
from tidepipe_common.errors import NotFoundError

STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes(feed: PageFeed) -> list[BaseRoute]:
    """/ui and its files, which hold no data and are open to all, and /admin/events, which is the data."""
    files = _read_all()

    async def front(request: Request) -> Response:
        # Relative links need the slash.
        return RedirectResponse("ui/", headers=HEADERS)

    async def page(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in files:
            return failure(NotFoundError(f"the page has no file {name}"))
        media_type, content = files[name]
        return Response(content, media_type=media_type, headers=HEADERS)

    return [
        Route("/", front, methods=["GET"]),
        Route("/ui", front, methods=["GET"]),
        Route("/ui/", page, methods=["GET"]),
        Route("/ui/{name}", page, methods=["GET"]),
        Route("/admin/events", EventsEndpoint(feed), methods=["GET"]),
    ]


def _read_all() -> Mapping[str, tuple[str, bytes]]:
    """Name: (media type, content). Read once; nothing else in the folder can be asked for."""
    return {
        path.name: (TYPES[path.suffix], path.read_bytes())
        for path in sorted(STATIC.iterdir())
        if path.suffix in TYPES
    }
