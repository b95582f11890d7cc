"""Lines of OpenAI's batch files: requests in, responses and errors out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.json_pieces import json_pieces
from tidepipe_common.limits import MAX_CUSTOM_ID_CHARACTERS
from tidepipe_common.openai.answers import AnswerBody
from tidepipe_common.openai.bodies import parse_chat, parse_completion
from tidepipe_common.openai.failures import error_body, error_code, error_response, http_status
from tidepipe_common.openai.validation import MAX_PARAM_CHARACTERS, clip
from tidepipe_common.text.json_text import NotJsonError, check_json_text, decode_json, kind
from tidepipe_common.text.text import NOT_TEXT, is_text, one_json_line, quoted, repaired
from tidepipe_common.types.request import GenerationRequest

PARSERS: dict[str, Callable[[object, str], GenerationRequest]] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
}
"""What a batch may ask for."""

_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class BatchItem:
    """A line that can be run."""

    custom_id: str
    url: str
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class BatchLineError:
    """A line that cannot be run. custom_id: None if that could not be read. url: if its body is wrong."""

    custom_id: str | None
    message: str
    code: str
    param: str | None = None
    url: str | None = None


def parse_line(line: bytes, number: int, request_id: str) -> BatchItem | BatchLineError:
    """Read one line. `number` counts from 1 and stands in messages; `request_id` becomes the request's."""

    def bad(
        message: str,
        code: str,
        custom_id: str | None = None,
        param: str | None = None,
        url: str | None = None,
    ) -> BatchLineError:
        return BatchLineError(custom_id, clip(f"line {number}: {message}"), code, param, url)

    if not line.strip():
        return bad("empty", "invalid_json")
    try:
        value = decode_json(line)
    except NotJsonError as error:
        return bad(str(error), "invalid_json")
    if not isinstance(value, dict):
        return bad(f"must be a JSON object, got {kind(value)}", "invalid_line")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        got = "nothing" if "custom_id" not in value else quoted(custom_id)
        return bad(f"custom_id must be a non-empty string, got {got}", "invalid_custom_id", None, "custom_id")
    if not is_text(custom_id):
        return bad(f"custom_id {NOT_TEXT}", "invalid_custom_id", None, "custom_id")
    if len(custom_id) > MAX_CUSTOM_ID_CHARACTERS:
        text = f"custom_id may have {MAX_CUSTOM_ID_CHARACTERS} characters, got {len(custom_id)}"
        return bad(text, "invalid_custom_id", custom_id[:MAX_CUSTOM_ID_CHARACTERS], "custom_id")
    if unknown := sorted(value.keys() - set(_FIELDS)):
        text = f"unknown field {quoted(unknown[0])}; a line has {', '.join(_FIELDS)}"
        return bad(text, "unknown_field", custom_id, unknown[0][:MAX_PARAM_CHARACTERS])
    if value.get("method") != "POST":
        return bad(
            f"method must be 'POST', got {quoted(value.get('method'))}", "invalid_method", custom_id, "method"
        )
    url = value.get("url")
    if not isinstance(url, str) or url not in PARSERS:
        return bad(
            f"url must be one of {', '.join(PARSERS)}, got {quoted(url)}", "invalid_url", custom_id, "url"
        )
    if "body" not in value:
        return bad("body is required", "invalid_line", custom_id, "body")
    try:
        check_json_text(line, value["body"], "the body")
        request = PARSERS[url](value["body"], request_id)
    except InvalidRequestError as error:
        return bad(str(error), error_code(error), custom_id, error.param, url)
    if request.stream:
        return bad("stream: a batch cannot be streamed", "invalid_value", custom_id, "stream", url)
    return BatchItem(custom_id, url, request)


def seeded(item: BatchItem, line_name: str) -> BatchItem:
    """A request that draws, with a seed that is the same when its line, so named, is run again."""
    sampling = item.request.sampling
    if sampling.greedy or sampling.seed is not None:
        return item
    digest = hashlib.blake2b(line_name.encode(), digest_size=8).digest()
    sampling = replace(sampling, seed=int.from_bytes(digest, "big"))
    return replace(item, request=replace(item.request, sampling=sampling))


def response_line(line_id: str, item: BatchItem, body: AnswerBody) -> bytes:
    """Output line of a request that was answered."""
    response = {"status_code": 200, "request_id": item.request.request_id, "body": body}
    return _line(line_id, item.custom_id, response, None)


def error_line(line_id: str, error: BatchLineError, request_id: str) -> bytes:
    """Output line of a line that could not be run."""
    body = error_body(error.message, "invalid_request_error", error.param, error.code)
    response = {"status_code": 400, "request_id": request_id, "body": body}
    return _line(line_id, error.custom_id, response, {"code": error.code, "message": error.message})


def failure_line(line_id: str, item: BatchItem, error: BaseException) -> bytes:
    """Output line of a request that failed while it ran."""
    _, body, _ = error_response(error)
    response = {"status_code": http_status(error), "request_id": item.request.request_id, "body": body}
    return _line(
        line_id, item.custom_id, response, {"code": error_code(error), "message": body["error"]["message"]}
    )


def _line(
    line_id: str, custom_id: str | None, response: Mapping[str, object], error: dict[str, str] | None
) -> bytes:
    value = {"id": line_id, "custom_id": custom_id, "response": response, "error": error}
    text = "".join(json_pieces(value, _dumps, ", ", ": "))
    return repaired(one_json_line(text)).encode() + b"\n"


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
