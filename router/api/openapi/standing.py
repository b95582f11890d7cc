"""Models, health, metrics, the live page, and this description itself."""

from __future__ import annotations

from typing import Any

from router.api.openapi.operation import EVENTS, json_content, operation, parameter, ref, text_content

_VERSION = {"type": "object", "properties": {"version": {"type": "string"}}, "required": ["version"]}
_STATUS = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
_ANY = {"schema": {"type": "string"}}


def standing_paths() -> dict[str, Any]:
    """By path."""
    model = parameter("path", "name", {"type": "string", "minLength": 1})
    file = parameter("path", "name", {"type": "string", "minLength": 1})
    page = {"text/html": _ANY, "text/css": _ANY, "text/javascript": _ANY, "image/svg+xml": _ANY}
    to_page = operation("To the live page", {}, open_to_all=True, status=307)
    ready = operation("Able to answer", json_content(_STATUS), open_to_all=True)
    ready["responses"]["503"] = {
        "description": "Not yet; `missing` says what for.",
        "content": json_content(_STATUS),
    }
    return {
        "/v1/models": {"get": operation("What is served", json_content(ref("ModelList")))},
        "/v1/models/{name}": {
            "get": operation("One model", json_content(ref("Model")), failures=(404,), parameters=(model,))
        },
        "/health": {"get": operation("Alive", json_content(_STATUS), open_to_all=True)},
        "/ready": {"get": ready},
        "/version": {"get": operation("TidePipe's version", json_content(_VERSION))},
        "/metrics": {"get": operation("Prometheus", text_content("text/plain"))},
        "/": {"get": to_page},
        "/ui": {"get": to_page},
        "/ui/": {"get": operation("The live page", {"text/html": _ANY}, open_to_all=True)},
        "/ui/{name}": {
            "get": operation("Its files", page, failures=(404,), parameters=(file,), open_to_all=True)
        },
        "/admin/events": {"get": operation("The page's data, without end", EVENTS)},
        "/openapi.json": {"get": operation("This description", json_content({"type": "object"}))},
    }
