"""Output lines of a batch."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tidepipe.client.types import Completion
from tidepipe_common.errors import ModelError
from tidepipe_common.extras import SERVER, missing
from tidepipe_common.model_source import resolve_tokenizer
from tidepipe_common.openai.batch import BatchItem, response_line
from tidepipe_common.openai.responses import ResponseContext
from tidepipe_common.openai.spoken import hidden_tokens
from tidepipe_common.types.request import ChatTurn, GenerationRequest, Prompt

if TYPE_CHECKING:
    from router.text.tokenizer import TextProcessor


class BodyWriter:
    """Makes response lines. The tokenizer is loaded only if a request wants to see tokens."""

    def __init__(self, model_name: str, model_sources: tuple[str, ...]) -> None:
        """model_name: of requests that name none.

        model_sources: where the model's tokenizer may lie on this machine, best first.
        """
        self._model_name = model_name
        self._sources = model_sources
        self._text: TextProcessor | None = None
        self._tried = False

    async def prepare(self, item: BatchItem) -> None:
        """Load the tokenizer if this item is the first to need it; other requests go on meanwhile."""
        if _wants_tokens(item.request) and not self._tried:
            self._tried = True
            self._text = await asyncio.to_thread(_load, self._sources)

    def response(self, line_id: str, item: BatchItem, completion: Completion) -> bytes:
        """The output line of an answered request, for which `prepare` was called."""
        request = item.request
        contexts = [self._context(request, prompt, completion) for prompt in request.prompts]
        context = replace(contexts[0], others=tuple(contexts[1:]))
        return response_line(line_id, item, item.body(context, completion.answers, completion.usage))

    def _context(self, request: GenerationRequest, prompt: Prompt, completion: Completion) -> ResponseContext:
        text = self._text
        shown = request.return_token_ids or request.echo
        ids = _prompt_ids(prompt, request, text) if shown else None
        return ResponseContext(
            request=request,
            model=request.model or self._model_name,
            created=int(time.time()),
            token_bytes=text.token_bytes if text else _spelled_as_id,
            hidden=hidden_tokens(request, text) if text else None,
            prompt_token_ids=ids if request.return_token_ids else None,
            prompt=ids or (),
            prompt_text=_prompt_text(prompt, text) if request.echo else "",
            reading=completion.reading,
            spells=text is not None,
        )


def _wants_tokens(request: GenerationRequest) -> bool:
    echoes_ids = request.echo and not all(isinstance(prompt, str) for prompt in request.prompts)
    logprobs = (request.sampling.logprobs, request.sampling.prompt_logprobs)
    return logprobs != (None, None) or request.return_token_ids or echoes_ids


def _load(sources: tuple[str, ...]) -> TextProcessor | None:
    if missing(SERVER):
        return None  # as where the model is not on this machine
    # Late: transformers takes seconds to import.
    from router.text.tokenizer import TextProcessor

    for source in sources:
        try:
            return TextProcessor.load(resolve_tokenizer(source))
        except ModelError:
            continue
    return None


def _prompt_ids(
    prompt: Prompt, request: GenerationRequest, text: TextProcessor | None
) -> tuple[int, ...] | None:
    """Tokens of the prompt; None if they are not known here."""
    if isinstance(prompt, str):
        return tuple(text.encode(prompt)) if text else None
    if isinstance(prompt[0], ChatTurn):
        turns = [turn for turn in prompt if isinstance(turn, ChatTurn)]
        return tuple(text.encode_chat(turns, request.tools, None, request.template)) if text else None
    return tuple(token for token in prompt if isinstance(token, int))


def _prompt_text(prompt: Prompt, text: TextProcessor | None) -> str:
    """The prompt as it was sent, or what its token ids stand for."""
    if isinstance(prompt, str) or text is None:
        return prompt if isinstance(prompt, str) else ""
    return text.decode([token for token in prompt if isinstance(token, int)], skip_special_tokens=False)


def _spelled_as_id(token_id: int) -> bytes:
    """How a token is shown if its text is not known here (vLLM's spelling)."""
    return f"token_id:{token_id}".encode()
