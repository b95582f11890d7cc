"""Schemas of answers."""

from __future__ import annotations

from typing import Any

from router.api.openapi.operation import ref
from router.batches import records
from tidepipe_common.types.sampling import FinishReason

_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_NUMBER = {"type": "number"}
_TIME = {"type": ["integer", "null"], "description": "Unix time, seconds."}
_TEXT_OR_NULL = {"type": ["string", "null"]}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _array(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _listing(of: str) -> dict[str, Any]:
    return _object(
        {
            "object": {"const": "list"},
            "data": _array(ref(of)),
            "first_id": _TEXT_OR_NULL,
            "last_id": _TEXT_OR_NULL,
            "has_more": {"type": "boolean"},
        }
    )


_TOKEN_IDS = _array(_INTEGER)
_ENDING = {
    "finish_reason": {"enum": [reason.value for reason in FinishReason if reason.whole]},
    "stop_reason": {"type": ["integer", "string", "null"], "description": "Token id or text that ended it."},
}
_TOKEN = {"token": _TEXT, "logprob": _NUMBER, "bytes": _array(_INTEGER)}
_CHAT_LOGPROBS = _object(
    {
        "content": _array(_object(_TOKEN | {"top_logprobs": _array(_object(_TOKEN))})),
        "refusal": {"type": "null"},
    }
)
_COMPLETION_LOGPROBS = _object(
    {
        "tokens": _array(_TEXT),
        "token_logprobs": _array(_NUMBER),
        "top_logprobs": _array({"type": "object", "additionalProperties": _NUMBER}),
        "text_offset": _array(_INTEGER),
    }
)
_MESSAGE = _object({"role": {"const": "assistant"}, "content": _TEXT, "refusal": {"type": "null"}})


def _answer(what: str, choice: dict[str, Any]) -> dict[str, Any]:
    return _object(
        {
            "id": _TEXT,
            "object": {"const": what},
            "created": _INTEGER,
            "model": _TEXT,
            "choices": _array(choice),
            "usage": ref("Usage"),
        },
        {"prompt_token_ids": _TOKEN_IDS} if what == "chat.completion" else {},
    )


ANSWER_SCHEMAS: dict[str, dict[str, Any]] = {
    "Error": _object(
        {"error": _object({"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL})}
    ),
    "Usage": _object({"prompt_tokens": _INTEGER, "completion_tokens": _INTEGER, "total_tokens": _INTEGER}),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": _INTEGER,
            "owned_by": _TEXT,
            "max_model_len": _INTEGER,
        }
    ),
    "ModelList": _object({"object": {"const": "list"}, "data": _array(ref("Model"))}),
    "ChatAnswer": _answer(
        "chat.completion",
        _object(
            {"index": _INTEGER, "message": _MESSAGE, "logprobs": _or_null(_CHAT_LOGPROBS), **_ENDING},
            {"token_ids": _TOKEN_IDS},
        ),
    ),
    "CompletionAnswer": _answer(
        "text_completion",
        _object(
            {"index": _INTEGER, "text": _TEXT, "logprobs": _or_null(_COMPLETION_LOGPROBS), **_ENDING},
            {"token_ids": _TOKEN_IDS, "prompt_token_ids": _TOKEN_IDS},
        ),
    ),
}


def stored_schemas() -> dict[str, dict[str, Any]]:
    """Of files and batches."""
    states = (*records.UNFINISHED, records.COMPLETED, records.FAILED, records.CANCELLED, records.EXPIRED)
    entered = [state for state in states if state != records.VALIDATING]
    error = {"code": _TEXT, "message": _TEXT, "line": {"type": ["integer", "null"]}, "param": _TEXT_OR_NULL}
    file = {
        "id": _TEXT,
        "object": {"const": "file"},
        "bytes": _INTEGER,
        "created_at": _INTEGER,
        "expires_at": {"type": ["integer", "null"]},
        "filename": _TEXT,
        "purpose": {"enum": ["batch", "batch_output"]},
        "status": {"const": "processed"},
        "status_details": {"type": "null"},
    }
    batch = {
        "id": _TEXT,
        "object": {"const": "batch"},
        "endpoint": _TEXT,
        "errors": _or_null(_object({"object": {"const": "list"}, "data": _array(_object(error))})),
        "input_file_id": _TEXT,
        "completion_window": _TEXT,
        "status": {"enum": list(states)},
        "output_file_id": _TEXT_OR_NULL,
        "error_file_id": _TEXT_OR_NULL,
        "created_at": _INTEGER,
        "expires_at": _INTEGER,
        **{f"{state}_at": _TIME for state in entered},
        "request_counts": _object({"total": _INTEGER, "completed": _INTEGER, "failed": _INTEGER}),
        "metadata": _or_null({"type": "object", "additionalProperties": _TEXT}),
    }
    deleted = {"id": _TEXT, "object": {"const": "file"}, "deleted": {"const": True}}
    return {
        "File": _object(file),
        "FileList": _listing("File"),
        "DeletedFile": _object(deleted),
        "Batch": _object(batch),
        "BatchList": _listing("Batch"),
    }
