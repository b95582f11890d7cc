"""POST /v1/embeddings and /v1/rerank: vectors of texts, and which texts are near another one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from router.api.http.answers import ended_answers
from router.api.http.body import read_json
from router.api.http.failures import failure
from router.api.http.forms import Asked, Events
from router.requests.entry import Subscription
from tidepipe_common.aside import beside
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.openai.embeddings import (
    embeddings_body,
    parse_embeddings,
    parse_rerank,
    rerank_body,
    vector_bytes,
)
from tidepipe_common.types.request import Answer, GenerationRequest
from tidepipe_common.types.request_ids import draw_request_id

Body = Callable[[str, list[Answer], int], Any]
"""What is answered under a model's name, and how many tokens that took."""


class VectorForm:
    """A Form: embeddings, or a ranking by them."""

    def __init__(
        self,
        read: Callable[[object], tuple[GenerationRequest, Body]],
        named: Callable[[InvalidRequestError], InvalidRequestError],
    ) -> None:
        """named: the error with the names that this API has."""
        self._read = read
        self._named = named

    async def read(self, request: Request) -> Asked:
        """Part of Form."""
        return _Vectors(*await read_json(request, self._read))

    def failure(self, error: Exception, headers: Mapping[str, str]) -> Response:
        """Part of Form."""
        return failure(self._named(error) if isinstance(error, InvalidRequestError) else error, headers)


def read_embeddings(body: object) -> tuple[GenerationRequest, Body]:
    """InvalidRequestError for what cannot be read."""
    asked, request = parse_embeddings(body, draw_request_id())
    return request, functools.partial(embeddings_body, asked)


def read_rerank(body: object) -> tuple[GenerationRequest, Body]:
    """Likewise."""
    asked, request = parse_rerank(body, draw_request_id())
    return request, functools.partial(rerank_body, asked, request.request_id)


@dataclass(frozen=True, slots=True)
class _Vectors:
    request: GenerationRequest
    body: Body

    async def whole(self, wanted: GenerationRequest, subscription: Subscription) -> bytes:
        answers = await ended_answers(subscription)
        model, tokens = subscription.entry.model, subscription.entry.prompt_tokens
        assert model is not None, "it has been admitted"
        name = model.called(wanted.model)

        def write() -> bytes:
            return json.dumps(self.body(name, answers, tokens), separators=(",", ":")).encode()

        return await beside(vector_bytes(answers), write)

    def events(self, wanted: GenerationRequest, subscription: Subscription) -> Events:
        raise AssertionError("vectors are not streamed")
