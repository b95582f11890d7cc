"""Lines of OpenAI's batch files: requests in, responses and errors out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.json_pieces import json_pieces
from tidepipe_common.limits import MAX_CUSTOM_ID_CHARACTERS
from tidepipe_common.openai.answers import AnswerBody
from tidepipe_common.openai.bodies import parse_chat, parse_completion
from tidepipe_common.openai.embeddings import (
    EmbeddingList,
    EmbeddingsBody,
    embeddings_body,
    in_embeddings,
    parse_embeddings,
)
from tidepipe_common.openai.failures import error_body, error_code, error_response, http_status
from tidepipe_common.openai.responses import ResponseContext, check_uncut, response_body
from tidepipe_common.openai.validation import MAX_PARAM_CHARACTERS, clip
from tidepipe_common.responses.answers import ResponseBody
from tidepipe_common.responses.body import ResponseAsk, in_our_names, parse_response
from tidepipe_common.responses.names import response_id
from tidepipe_common.responses.telling import Telling
from tidepipe_common.responses.writer import head_of
from tidepipe_common.text.json_text import NotJsonError, check_json_text, decode_json, kind
from tidepipe_common.text.text import NOT_TEXT, is_text, one_json_line, quoted, repaired
from tidepipe_common.types.request import Answer, GenerationRequest, Usage

Asked: TypeAlias = EmbeddingsBody | ResponseAsk | None
"""What the body of a line says that its request does not; None: nothing."""
ItemBody: TypeAlias = AnswerBody | EmbeddingList | ResponseBody
"""The body that answers a line."""


def _chat(body: object, request_id: str) -> tuple[GenerationRequest, Asked]:
    return parse_chat(body, request_id), None


def _completion(body: object, request_id: str) -> tuple[GenerationRequest, Asked]:
    return parse_completion(body, request_id), None


def _embeddings(body: object, request_id: str) -> tuple[GenerationRequest, Asked]:
    asked, request = parse_embeddings(body, request_id)
    return request, asked


def _response(body: object, request_id: str) -> tuple[GenerationRequest, Asked]:
    ask = parse_response(body)
    if ask.background:
        raise InvalidRequestError("background: all of a batch is; leave it out", "background")
    if ask.stored_by_wish:
        raise InvalidRequestError(
            "store: a batch's answers are in its output file; send store: false", "store"
        )
    if ask.previous is not None:
        text = "previous_response_id: a line of a batch stands alone; send the conversation as its input"
        raise InvalidRequestError(text, "previous_response_id")
    if ask.references:
        text = "input: a line of a batch stands alone; send the item itself instead of an item_reference"
        raise InvalidRequestError(text, "input")
    return ask.request(request_id), ask


PARSERS: dict[str, Callable[[object, str], tuple[GenerationRequest, Asked]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embeddings,
    "/v1/responses": _response,
}
"""What a batch may ask for."""

_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class BatchItem:
    """A line that can be run."""

    custom_id: str
    url: str
    request: GenerationRequest
    asked: Asked = None

    def named(self, error: InvalidRequestError) -> InvalidRequestError:
        """The error, with the names that its API has."""
        match self.asked:
            case EmbeddingsBody():
                return in_embeddings(error)
            case ResponseAsk():
                return in_our_names(error)
            case _:
                return error

    def body(self, context: ResponseContext, answers: Sequence[Answer], usage: Usage) -> ItemBody:
        """What its whole answers say. Raises what went wrong, also if one of them was cut."""
        match self.asked:
            case EmbeddingsBody() as asked:
                check_uncut(answers)
                return embeddings_body(asked, context.model, answers, usage.prompt_tokens)
            case ResponseAsk() as ask:
                name = response_id(self.request.request_id)
                head = head_of(ask, name, context.model, context.created, stored=False)
                telling = Telling(head, ask.tools, context)
                for answer in answers:
                    list(telling.piece(answer))
                list(telling.rest())
                return telling.body(usage, context.created)
            case _:
                return response_body(context, answers, usage)


@dataclass(frozen=True, slots=True)
class BatchLineError:
    """A line that cannot be run. custom_id: None if that could not be read. url: if its body is wrong.

    status: what the API would answer to its body.
    """

    custom_id: str | None
    message: str
    code: str
    param: str | None = None
    url: str | None = None
    status: int = 400


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
        request, asked = PARSERS[url](value["body"], request_id)
    except InvalidRequestError as error:
        return bad(str(error), error_code(error), custom_id, error.param, url)
    if request.stream:
        return bad("stream: a batch cannot be streamed", "invalid_value", custom_id, "stream", url)
    return BatchItem(custom_id, url, request, asked)


def seeded(item: BatchItem, line_name: str) -> BatchItem:
    """A request that draws, with a seed that is the same when its line, so named, is run again."""
    sampling = item.request.sampling
    if sampling.greedy or sampling.seed is not None:
        return item
    digest = hashlib.blake2b(line_name.encode(), digest_size=8).digest()
    sampling = replace(sampling, seed=int.from_bytes(digest, "big"))
    return replace(item, request=replace(item.request, sampling=sampling))


def response_line(line_id: str, item: BatchItem, body: ItemBody) -> bytes:
    """Output line of a request that was answered."""
    response = {"status_code": 200, "request_id": item.request.request_id, "body": body}
    return _line(line_id, item.custom_id, response, None)


def error_line(line_id: str, error: BatchLineError, request_id: str) -> bytes:
    """Output line of a line that could not be run."""
    body = error_body(error.message, "invalid_request_error", error.param, error.code)
    response = {"status_code": error.status, "request_id": request_id, "body": body}
    return _line(line_id, error.custom_id, response, {"code": error.code, "message": error.message})


def failure_line(line_id: str, item: BatchItem, error: BaseException) -> bytes:
    """Output line of a request that failed while it ran."""
    if isinstance(error, InvalidRequestError):
        error = item.named(error)
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
