"""Lines of OpenAI's batch files: requests in, responses and errors out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from common.errors import InvalidRequestError
from common.limits import MAX_CUSTOM_ID_CHARACTERS
from common.openai.bodies import parse_chat, parse_completion
from common.openai.failures import error_body, error_code, error_response, http_status
from common.openai.validation import clip, kind
from common.request import GenerationRequest

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
    """A line that cannot be run. custom_id: None if it could not be read either."""

    custom_id: str | None
    message: str
    code: str
    param: str | None = None


def parse_line(line: bytes, number: int, request_id: str) -> BatchItem | BatchLineError:
    """Read one line. `number` counts from 1 and stands in messages; `request_id` becomes the request's."""

    def bad(
        message: str, code: str, custom_id: str | None = None, param: str | None = None
    ) -> BatchLineError:
        return BatchLineError(custom_id, clip(f"line {number}: {message}"), code, param)

    try:
        value = _decode(line)
    except _NotJsonError as error:
        return bad(str(error), "invalid_json")
    if not isinstance(value, dict):
        return bad(f"must be a JSON object, got {kind(value)}", "invalid_line")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        got = "nothing" if "custom_id" not in value else repr(custom_id)
        return bad(f"custom_id must be a non-empty string, got {got}", "invalid_custom_id", None, "custom_id")
    if len(custom_id) > MAX_CUSTOM_ID_CHARACTERS:
        text = f"custom_id may have {MAX_CUSTOM_ID_CHARACTERS} characters, got {len(custom_id)}"
        return bad(text, "invalid_custom_id", custom_id[:MAX_CUSTOM_ID_CHARACTERS], "custom_id")
    if unknown := sorted(value.keys() - set(_FIELDS)):
        text = f"unknown field {unknown[0]!r}; a line has {', '.join(_FIELDS)}"
        return bad(text, "unknown_field", custom_id, unknown[0])
    if value.get("method") != "POST":
        return bad(
            f"method must be 'POST', got {value.get('method')!r}", "invalid_method", custom_id, "method"
        )
    url = value.get("url")
    if not isinstance(url, str) or url not in PARSERS:
        return bad(f"url must be one of {', '.join(PARSERS)}, got {url!r}", "invalid_url", custom_id, "url")
    if "body" not in value:
        return bad("body is required", "invalid_line", custom_id, "body")
    try:
        request = PARSERS[url](value["body"], request_id)
    except InvalidRequestError as error:
        return bad(str(error), error_code(error), custom_id, error.param)
    if request.stream:
        return bad("stream: a batch cannot be streamed", "invalid_value", custom_id, "stream")
    return BatchItem(custom_id, url, request)


def seeded(item: BatchItem, line_name: str) -> BatchItem:
    """A request that draws, with a seed that is the same when its line, so named, is run again."""
    sampling = item.request.sampling
    if sampling.greedy or sampling.seed is not None:
        return item
    digest = hashlib.blake2b(line_name.encode(), digest_size=8).digest()
    sampling = replace(sampling, seed=int.from_bytes(digest, "big"))
    return replace(item, request=replace(item.request, sampling=sampling))


def response_line(line_id: str, item: BatchItem, body: dict[str, Any]) -> bytes:
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


class _NotJsonError(Exception):
    pass


def _decode(line: bytes) -> object:
    try:
        text = line.decode("utf-8-sig")  # some editors put a mark at the beginning of the file
    except UnicodeDecodeError as error:
        raise _NotJsonError(f"not UTF-8: byte {error.start} is 0x{line[error.start]:02x}") from None
    if not text.strip():
        raise _NotJsonError("empty")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _NotJsonError(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _NotJsonError("not usable JSON: nested too deeply") from None
    except ValueError as error:  # integers with thousands of digits
        raise _NotJsonError(f"not usable JSON: {error}") from None


def _refuse_constant(name: str) -> object:
    raise _NotJsonError(f"not JSON: {name} is not a JSON number")


def _line(
    line_id: str, custom_id: str | None, response: dict[str, Any], error: dict[str, str] | None
) -> bytes:
    value = {"id": line_id, "custom_id": custom_id, "response": response, "error": error}
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        # A custom_id with unpaired surrogates comes back as it came: escaped.
        return json.dumps(value, allow_nan=False).encode() + b"\n"
