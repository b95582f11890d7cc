"""From an admitted request to what a response body says."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from router.batches.answering import Reading
from router.requests.entry import Subscription
from router.requests.table import RequestTable
from router.requests.text_port import TextPort
from tidepipe_common.aside import INLINE_BYTES, beside
from tidepipe_common.json_pieces import json_pieces
from tidepipe_common.openai.batch import BatchItem, ItemBody
from tidepipe_common.openai.embeddings import vector_bytes
from tidepipe_common.openai.responses import ResponseContext, answer_bytes, check_uncut, response_body
from tidepipe_common.openai.spoken import hidden_tokens
from tidepipe_common.types.prompt_reading import PromptLog
from tidepipe_common.types.request import Answer, GenerationRequest, Prompt
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs

log = structlog.get_logger()


class AnswerBodies:
    """Makes bodies, with what they say besides the answer."""

    def __init__(self, usual_name: Callable[[], str]) -> None:
        """usual_name: of the model that is meant by a request that names none."""
        self._usual_name = usual_name

    def name(self, wanted: GenerationRequest) -> str:
        """Of the model in an answer: the name that was asked for."""
        return wanted.model or self._usual_name()

    def context(self, wanted: GenerationRequest, subscription: Subscription) -> ResponseContext:
        """For a request that has been admitted."""
        model = subscription.entry.model
        assert model is not None, "it has been admitted"
        text = model.loaded  # spells the tokens of log-probabilities
        created = int(time.time())
        own = subscription.entry.answers[:: wanted.sampling.n]
        contexts = [
            ResponseContext(
                request=wanted,
                model=model.called(wanted.model),
                created=created,
                token_bytes=None if text is None else text.token_bytes,
                hidden=None if text is None else hidden_tokens(wanted, text),
                prompt_token_ids=tuple(answer.prompt) if wanted.return_token_ids else None,
                prompt_tokens=len(answer.prompt),
                prompt=answer.prompt,
                prompt_text=_prompt_text(prompt, answer.prompt, text) if wanted.echo else "",
                reading=subscription.entry.reading,
                notice=functools.partial(_noticed, wanted),
            )
            # A request that was cancelled before it was admitted has answers to its first prompt alone.
            for prompt, answer in zip(wanted.prompts, own, strict=False)
        ]
        return replace(contexts[0], others=tuple(contexts[1:]))

    async def written(self, wanted: GenerationRequest, subscription: Subscription) -> bytes:
        """The same as JSON."""
        answers = await _collected(subscription)
        size = _body_bytes(wanted, subscription, answers)

        def write() -> bytes:
            body = response_body(self.context(wanted, subscription), answers, subscription.entry.usage)
            return ("".join(json_pieces(body, _dumps)) if size > INLINE_BYTES else _dumps(body)).encode()

        return await beside(size, write)

    async def of_item(self, item: BatchItem, subscription: Subscription) -> ItemBody:
        """The body for a batch's line, once all have ended. Raises what went wrong, also if one was cut."""
        answers = await _collected(subscription)
        size = item.request.bytes_held + _body_bytes(item.request, subscription, answers)

        def make() -> ItemBody:
            return item.body(self.context(item.request, subscription), answers, subscription.entry.usage)

        return await beside(size, make)


def _noticed(wanted: GenerationRequest, warning: str) -> None:
    log.warning("no call", request=wanted.trace_id, reason=warning)


def _body_bytes(wanted: GenerationRequest, subscription: Subscription, answers: Sequence[Answer]) -> int:
    """About how large the body will be."""
    usage = subscription.entry.usage
    return answer_bytes(wanted, usage.output_tokens, usage.prompt_tokens) + vector_bytes(answers)


async def ended_answers(subscription: Subscription) -> list[Answer]:
    """All answers, ended. Raises what went wrong, also if one of them was cut."""
    answers = await _collected(subscription)
    check_uncut(answers)
    return answers


async def _collected(subscription: Subscription) -> list[Answer]:
    """All answers, ended, however. Raises what went wrong with the request."""
    collector = _Collector()
    async for deltas in subscription.deltas():
        for delta in deltas:
            collector.add(delta.piece)
    return collector.answers()


@dataclass(slots=True)
class _Parts:
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt: PromptLog = field(default_factory=PromptLog)
    vector: bytes = b""
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None
    error: str = ""


class _Collector:
    """Takes pieces in their order, gives whole answers."""

    def __init__(self) -> None:
        self._parts: dict[int, _Parts] = {}

    def add(self, piece: Answer) -> None:
        """Take the next piece of an answer."""
        parts = self._parts.setdefault(piece.index, _Parts())
        parts.token_ids += piece.token_ids
        parts.text.append(piece.text)
        parts.logprobs += piece.logprobs
        if piece.prompt_logprobs is not None:
            parts.prompt.merge(piece.prompt_logprobs)
        parts.vector = piece.vector or parts.vector
        if piece.finish_reason is not None:
            parts.finish_reason = piece.finish_reason
            parts.stopped_by = piece.stopped_by
            parts.error = piece.error

    def answers(self) -> list[Answer]:
        """The answers by index."""
        return [
            Answer(
                index=index,
                token_ids=tuple(parts.token_ids),
                text="".join(parts.text),
                logprobs=tuple(parts.logprobs),
                finish_reason=parts.finish_reason,
                stopped_by=parts.stopped_by,
                error=parts.error,
                prompt_logprobs=parts.prompt.read(0, len(parts.prompt)),
                vector=parts.vector,
            )
            for index, parts in sorted(self._parts.items())
        ]


async def answer_item(
    table: RequestTable, bodies: AnswerBodies, item: BatchItem, reading: Reading
) -> ItemBody:
    """Body for a batch's request, which runs as any other."""
    await table.ready()
    with contextlib.ExitStack() as listening:
        async with reading():
            subscription = listening.enter_context(table.attach(item.request, grace_s=0.0))
            await subscription.admitted()
        return await bodies.of_item(item, subscription)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _prompt_text(sent: Prompt, tokens: Sequence[int], text: TextPort | None) -> str:
    """The prompt as it was sent, or what its token ids stand for."""
    if isinstance(sent, str):
        return sent
    spelled = b"".join(text.token_bytes(token) for token in tokens) if text is not None else b""
    return spelled.decode("utf-8", "replace")
