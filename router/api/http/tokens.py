"""POST /tokenize and /detokenize: what the model's tokenizer makes of a text, and of token ids."""

from __future__ import annotations

import json
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.api.http.body import read_json
from router.api.http.failures import guarded
from router.instances.served_model import ModelFacts
from router.requests.admission import Admission
from router.requests.text_port import TextPort, TooManyTokensError
from tidepipe_common.aside import ROOM
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_PROMPT_TOKENS
from tidepipe_common.openai.logprobs import spelled
from tidepipe_common.openai.tokens import (
    DetokenizeBody,
    Detokenized,
    TextToTokenize,
    Tokenized,
    parse_detokenize,
    parse_tokenize,
)

CHARACTERS_PER_TOKEN = 4
"""Of work: a token to be spelled takes as long as so many characters to be read."""


class TokenEndpoints:
    """Texts are read beside the event loop, one after the other with those of requests."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def routes(self) -> list[Route]:
        """All paths, with and without OpenAI's /v1."""
        return [
            Route(prefix + path, guarded(handle), methods=["POST"])
            for prefix in ("", "/v1")
            for path, handle in (("/tokenize", self.tokenize), ("/detokenize", self.detokenize))
        ]

    async def tokenize(self, request: Request) -> Response:
        """Tokens of a text or of a chat."""
        asked = await read_json(request, parse_tokenize)
        text, facts = await self._admission.model(asked.model)
        return await self._written(asked.characters, lambda: _tokenized(asked, text, facts))

    async def detokenize(self, request: Request) -> Response:
        """Text of tokens."""
        asked = await read_json(request, parse_detokenize)
        text, facts = await self._admission.model(asked.model)
        size = CHARACTERS_PER_TOKEN * len(asked.tokens)
        return await self._written(size, lambda: _detokenized(asked, text, facts))

    async def _written(self, size: int, make: Callable[[], Tokenized | Detokenized]) -> Response:
        """OverloadedError if texts of too many bytes wait already."""

        def write() -> bytes:
            return json.dumps(make(), ensure_ascii=False, separators=(",", ":")).encode()

        with ROOM.share() as share:
            share.grow(size)
            return Response(await self._admission.beside(size, write), media_type="application/json")


def _tokenized(asked: TextToTokenize, text: TextPort, facts: ModelFacts) -> Tokenized:
    try:
        if asked.text is not None:
            tokens = text.encode(asked.text, MAX_PROMPT_TOKENS, special=asked.special)
        else:
            tokens = text.encode_chat(asked.turns, asked.tools, MAX_PROMPT_TOKENS, asked.template)
    except TooManyTokensError as error:
        field = "prompt" if asked.text is not None else "messages"
        raise InvalidRequestError(f"{field} may have {error.at_least} tokens; it has more", field) from None
    return {
        "count": len(tokens),
        "max_model_len": facts.context_length,
        "tokens": tokens,
        "token_strs": [spelled(text.token_bytes(token)) for token in tokens] if asked.spelled else None,
    }


def _detokenized(asked: DetokenizeBody, text: TextPort, facts: ModelFacts) -> Detokenized:
    largest = max(asked.tokens, default=0)
    if largest >= facts.vocab_size:
        raise InvalidRequestError(
            f"tokens has the id {largest}, but the vocabulary ends at {facts.vocab_size - 1}", "tokens"
        )
    return {"prompt": text.decode(asked.tokens, skip_special_tokens=False)}
