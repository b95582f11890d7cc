"""Puts the OpenAPI document together."""

from __future__ import annotations

from typing import Any

from router.api.http.batches import BatchBody
from router.api.openapi.answers import ANSWER_SCHEMAS, stored_schemas
from router.api.openapi.completions import completion_paths
from router.api.openapi.standing import standing_paths
from router.api.openapi.stored import stored_paths
from tidepipe_common.limits import MAX_STRUCTURE_BYTES
from tidepipe_common.openai.schemas import request_schemas, schemas_of

_ABOUT = (
    "An OpenAI-compatible API. Schemas say what a body may look like; some wishes are refused (400) for what "
    "no schema says: fields that contradict each other, token ids beyond the vocabulary, a prompt that does "
    "not fit the model's context, a JSON schema or regular expression that cannot be used, or one of more "
    f"than {MAX_STRUCTURE_BYTES} bytes in UTF-8."
)
_SECURITY = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "Where the router asks for API keys."},
    "certificate": {"type": "mutualTLS", "description": "Where the router asks for client certificates."},
}


def openapi_document(*, stored: bool) -> dict[str, Any]:
    """stored: the router keeps files and batches."""
    schemas = request_schemas() | ANSWER_SCHEMAS
    paths = completion_paths() | standing_paths()
    if stored:
        schemas |= schemas_of([BatchBody]) | stored_schemas()
        paths |= stored_paths()
    return {
        "openapi": "3.1.0",
        "info": {"title": "TidePipe", "version": "v1", "description": _ABOUT},
        # Each alternative by itself; a router on the loopback asks for nothing.
        "security": [{"apiKey": []}, {"certificate": []}, {}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
    }
