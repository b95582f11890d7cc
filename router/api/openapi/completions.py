"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

from typing import Any

from router.api.http.headers import IDEMPOTENCY_KEY, MAX_ID_CHARACTERS, REQUEST_ID, TPOT, TTFT
from router.api.openapi.operation import EVENTS, json_content, operation, parameter, ref
from tidepipe_common.types.request import MAX_LATENCY_TARGET_MS, MIN_LATENCY_TARGET_MS

_LATENCY = {"type": "number", "minimum": MIN_LATENCY_TARGET_MS, "maximum": MAX_LATENCY_TARGET_MS}
_HEADERS = (
    parameter(
        "header",
        REQUEST_ID,
        {"type": "string"},
        "For your logs and ours: comes back, and names nothing. A new one if there is none.",
    ),
    parameter(
        "header",
        IDEMPOTENCY_KEY,
        # What Latin-1 can print; spaces at the ends belong to no value of a header.
        {"type": "string", "pattern": f"^(?! )[ -~¡-¬®-ÿ]{{1,{MAX_ID_CHARACTERS}}}(?<! )$"},
        "Asked again with it, a request is the same request; with another body it is refused (422).",
    ),
    parameter("header", TTFT, _LATENCY, "Milliseconds wanted up to the first token."),
    parameter("header", TPOT, _LATENCY, "Milliseconds wanted for each further token."),
)
_FAILURES = (400, 404, 408, 413, 415, 422, 429, 500, 503)


def completion_paths() -> dict[str, Any]:
    """By path."""
    return {
        "/v1/chat/completions": {"post": _completion("Answer a conversation", "Chat")},
        "/v1/completions": {"post": _completion("Continue a text", "Completion")},
    }


def _completion(summary: str, what: str) -> dict[str, Any]:
    return operation(
        summary,
        # With stream: true, server-sent events of JSON, ended by [DONE].
        json_content(ref(f"{what}Answer")) | EVENTS,
        failures=_FAILURES,
        parameters=_HEADERS,
        body=json_content(ref(f"{what}Body")),
    )
