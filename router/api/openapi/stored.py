"""/v1/files and /v1/batches."""

from __future__ import annotations

from typing import Any

from router.api.openapi.operation import json_content, operation, parameter, ref
from router.batches.limits import MAX_EXPIRES_S, MIN_EXPIRES_S

_FORM = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "const": "batch"},
        "expires_after[anchor]": {"type": "string", "const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_EXPIRES_S, "maximum": MAX_EXPIRES_S},
    },
    "required": ["file", "purpose"],
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
    "additionalProperties": False,
}
_FILE_ID = parameter("path", "file_id", {"type": "string", "minLength": 1})
_BATCH_ID = parameter("path", "batch_id", {"type": "string", "minLength": 1})
_AFTER = parameter("query", "after", {"type": "string"}, "The last id of the page before.")
_PURPOSE = parameter("query", "purpose", {"type": "string"})
_ORDER = parameter("query", "order", {"enum": ["asc", "desc"]}, "By age; newest first unless said otherwise.")


def stored_paths() -> dict[str, Any]:
    """By path."""
    file = json_content(ref("File"))
    batch = json_content(ref("Batch"))
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "/v1/files": {
            "get": operation(
                "Files",
                json_content(ref("FileList")),
                failures=(400, 404),
                parameters=(_limit(10_000), _AFTER, _ORDER, _PURPOSE),
            ),
            "post": operation(
                "Store a file of requests",
                file,
                failures=(400, 408, 413, 415, 429, 507),
                body={"multipart/form-data": {"schema": _FORM}},
            ),
        },
        "/v1/files/{file_id}": {
            "get": operation("One file", file, failures=(404,), parameters=(_FILE_ID,)),
            "delete": operation(
                "Delete a file",
                json_content(ref("DeletedFile")),
                failures=(400, 404, 507),
                parameters=(_FILE_ID,),
            ),
        },
        "/v1/files/{file_id}/content": {
            "get": operation("What is in it", content, failures=(404,), parameters=(_FILE_ID,))
        },
        "/v1/batches": {
            "get": operation(
                "Batches",
                json_content(ref("BatchList")),
                failures=(400, 404),
                parameters=(_limit(100), _AFTER, _ORDER),
            ),
            "post": operation(
                "Answer a file's requests in the background",
                batch,
                failures=(400, 404, 408, 413, 415, 429, 507),
                body=json_content(ref("BatchBody")),
            ),
        },
        "/v1/batches/{batch_id}": {
            "get": operation("How far a batch is", batch, failures=(404,), parameters=(_BATCH_ID,))
        },
        "/v1/batches/{batch_id}/cancel": {
            "post": operation("Answer no more of it", batch, failures=(400, 404), parameters=(_BATCH_ID,))
        },
    }


def _limit(most: int) -> dict[str, Any]:
    return parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": most})
