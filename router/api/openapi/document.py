"""/openapi.json: what the HTTP API takes and gives, by path."""

from __future__ import annotations

from typing import Any

from router.api.http.batches import BatchBody
from router.api.http.endpoint import IDEMPOTENCY_KEY, MAX_ID_CHARACTERS, REQUEST_ID, TPOT, TTFT
from router.api.openapi.operation import EVENTS, json_content, operation, parameter, ref, text_content
from router.batches.limits import MAX_EXPIRES_S, MIN_EXPIRES_S
from tidepipe_common.limits import MAX_STRUCTURE_BYTES
from tidepipe_common.messages.answers import MessageAnswer, MessageError, MessageTokens
from tidepipe_common.messages.body import CountBody, MessagesBody
from tidepipe_common.openai.answers import (
    Batch,
    BatchList,
    ChatAnswer,
    ChatChunk,
    CompletionAnswer,
    CompletionChunk,
    DeletedFile,
    Error,
    File,
    FileList,
    Model,
    ModelList,
)
from tidepipe_common.openai.bodies import ChatBody, CompletionBody
from tidepipe_common.openai.embeddings import EmbeddingList, EmbeddingsBody, Ranking, RerankBody
from tidepipe_common.openai.schemas import schemas_of
from tidepipe_common.openai.tokens import DetokenizeBody, Detokenized, TokenizeBody, Tokenized
from tidepipe_common.responses.answers import (
    DeletedResponse,
    InputItemList,
    ResponseBody,
    ResponseEvent,
)
from tidepipe_common.responses.body import INCLUDED, ResponsesBody
from tidepipe_common.types.request import MAX_LATENCY_TARGET_MS, MIN_LATENCY_TARGET_MS

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

_TYPES = (
    *(ChatBody, ChatAnswer, ChatChunk, CompletionBody, CompletionAnswer, CompletionChunk),
    *(ResponsesBody, ResponseBody, ResponseEvent),
    *(MessagesBody, MessageAnswer, CountBody, MessageTokens, MessageError),
    *(EmbeddingsBody, EmbeddingList, RerankBody, Ranking),
    *(TokenizeBody, Tokenized, DetokenizeBody, Detokenized, Model, ModelList, Error),
)
_STORED_TYPES = (
    *(BatchBody, Batch, BatchList, File, FileList, DeletedFile),
    *(InputItemList, DeletedResponse),
)


def openapi_document(*, stored: bool) -> dict[str, Any]:
    """stored: the router keeps files and batches."""
    types, paths = list(_TYPES), completion_paths() | vector_paths() | token_paths() | standing_paths()
    if stored:
        types += _STORED_TYPES
        paths |= stored_paths() | response_paths()
    return {
        "openapi": "3.1.0",
        "info": {"title": "TidePipe", "version": "v1", "description": _ABOUT},
        # Each alternative by itself; a router on the loopback asks for nothing.
        "security": [{"apiKey": []}, {"certificate": []}, {}],
        "paths": paths,
        "components": {"schemas": schemas_of(types), "securitySchemes": _SECURITY},
    }


# -- completions ----

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
        "/v1/messages": {
            "post": operation(
                "Answer a conversation, in Anthropic's form",
                json_content(ref("MessageAnswer")) | EVENTS,
                failures=_FAILURES,
                parameters=_HEADERS,
                body=json_content(ref("MessagesBody")),
                error="MessageError",
            )
        },
        "/v1/messages/count_tokens": {
            "post": operation(
                "How long a conversation is",
                json_content(ref("MessageTokens")),
                failures=(400, 404, 408, 413, 415, 429, 503),
                body=json_content(ref("CountBody")),
                error="MessageError",
            )
        },
        "/v1/responses": {
            "post": operation(
                "Answer, and keep what was said",
                # With stream: true, server-sent events of typed JSON (ResponseEvent).
                json_content(ref("ResponseBody")) | EVENTS,
                failures=(*_FAILURES, 507),
                parameters=_HEADERS,
                body=json_content(ref("ResponsesBody")),
            )
        },
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


# -- vectors ----


def vector_paths() -> dict[str, Any]:
    """By path."""

    def path(summary: str, body: str, answer: str) -> dict[str, Any]:
        return {
            "post": operation(
                summary,
                json_content(ref(answer)),
                failures=_FAILURES,
                parameters=_HEADERS,
                body=json_content(ref(body)),
            )
        }

    ranking = path("Documents by their nearness to a query", "RerankBody", "Ranking")
    return {
        "/v1/embeddings": path("Vectors of texts", "EmbeddingsBody", "EmbeddingList"),
        "/rerank": ranking,
        "/v1/rerank": ranking,
        "/v2/rerank": ranking,
    }


# -- tokens ----


def token_paths() -> dict[str, Any]:
    """By path."""
    failures = (400, 404, 408, 413, 415, 429, 500, 503)
    what = (
        ("tokenize", "Tokens of a text or a chat", "TokenizeBody", "Tokenized"),
        ("detokenize", "Text of tokens", "DetokenizeBody", "Detokenized"),
    )
    return {
        f"{prefix}/{path}": {
            "post": operation(
                summary, json_content(ref(answer)), failures=failures, body=json_content(ref(body))
            )
        }
        for prefix in ("", "/v1")
        for path, summary, body, answer in what
    }


# -- standing ----

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


# -- files and batches ----

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


# -- responses ----

_RESPONSE_ID = parameter("path", "response_id", {"type": "string", "minLength": 1})
_INCLUDE = parameter("query", "include", {"type": "array", "items": {"enum": list(INCLUDED)}})
_ITEMS_ORDER = parameter("query", "order", {"enum": ["asc", "desc"]}, "Last first unless said otherwise.")


def response_paths() -> dict[str, Any]:
    """By path."""
    response = json_content(ref("ResponseBody"))
    stream = (
        parameter("query", "stream", {"enum": ["true", "false"]}, "Of one in the background: its events."),
        parameter(
            "query",
            "starting_after",
            {"type": "integer", "minimum": 0},
            "The number of the last event that is there already.",
        ),
    )
    return {
        "/v1/responses/{response_id}": {
            "get": operation(
                "One response",
                response | EVENTS,
                failures=(400, 404),
                parameters=(_RESPONSE_ID, *stream, _INCLUDE),
            ),
            "delete": operation(
                "Forget a response",
                json_content(ref("DeletedResponse")),
                failures=(404, 507),
                parameters=(_RESPONSE_ID,),
            ),
        },
        "/v1/responses/{response_id}/cancel": {
            "post": operation(
                "End one in the background", response, failures=(400, 404), parameters=(_RESPONSE_ID,)
            )
        },
        "/v1/responses/{response_id}/input_items": {
            "get": operation(
                "What it was asked with",
                json_content(ref("InputItemList")),
                failures=(400, 404),
                parameters=(_RESPONSE_ID, _limit(100), _AFTER, _ITEMS_ORDER, _INCLUDE),
            )
        },
    }


def _limit(most: int) -> dict[str, Any]:
    return parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": most})
