"""The parts of which operations are described."""

from __future__ import annotations

from typing import Any

_MEANINGS = {
    400: "Malformed or meaningless; `param` names the field or header.",
    401: "No API key, or an unknown, expired or revoked one.",
    403: "The key's role may not do this, or a browser asks for a page of another site.",
    404: "There is none of that name.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "Bodies are JSON as it is, with content-type: application/json.",
    422: "The idempotency key belongs to another request.",
    429: "No room now; come again after `retry-after` seconds, or `retry-after-ms`.",
    500: "A defect of TidePipe, or of a model's answer; the log says more.",
    503: "No instance serves, or the router stops.",
    507: "The disk is full; nothing of this was stored.",
}
_ALWAYS = (401, 403, 429)
"""With API keys; 429 also over a key's rate and concurrency."""


def ref(name: str) -> dict[str, str]:
    """A schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_content(schema: dict[str, Any]) -> dict[str, Any]:
    """JSON of that schema."""
    return {"application/json": {"schema": schema}}


EVENTS: dict[str, Any] = {"text/event-stream": {}}
"""Server-sent events."""


def text_content(media_type: str) -> dict[str, Any]:
    """Text of another type."""
    return {media_type: {"schema": {"type": "string"}}}


def operation(
    summary: str,
    content: dict[str, Any],
    *,
    failures: tuple[int, ...] = (),
    parameters: tuple[dict[str, Any], ...] = (),
    body: dict[str, Any] | None = None,
    open_to_all: bool = False,
    status: int = 200,
    error: str = "Error",
) -> dict[str, Any]:
    """content: of the answer, by media type. body: of the request, likewise. failures: HTTP statuses.

    error: name of their schema.
    """
    codes = sorted({*failures, *(() if open_to_all else _ALWAYS)})
    described: dict[str, Any] = {
        "summary": summary,
        "responses": {
            str(status): {"description": "As asked for.", "content": content},
            **{
                str(code): {"description": _MEANINGS[code], "content": json_content(ref(error))}
                for code in codes
            },
        },
    }
    if parameters:
        described["parameters"] = list(parameters)
    if body is not None:
        described["requestBody"] = {"required": True, "content": body}
    if open_to_all:
        described["security"] = []
    return described


def parameter(
    where: str, name: str, schema: dict[str, Any], description: str = "", *, required: bool = False
) -> dict[str, Any]:
    """where: path, query or header."""
    described = {"in": where, "name": name, "schema": schema, "required": required or where == "path"}
    return described | ({"description": description} if description else {})
