"""Turns a client's request into sequences of token ids, or says why it cannot be answered."""

from __future__ import annotations

import asyncio
import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from router.instances.sequence import PrefixKeys, PromptPrefix
from router.instances.served_model import ModelFacts
from router.models.models import ServedModels
from router.requests.entry import RequestEntry
from router.requests.output import AnswerText
from router.requests.running_answer import RunningAnswer
from router.requests.text_port import TextPort, TooManyTokensError
from tidepipe_common.aside import beside
from tidepipe_common.dialects import Reading
from tidepipe_common.errors import ContextLengthError, InvalidRequestError
from tidepipe_common.lengths.prompt import prompt_features
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.sampling import SamplingParams

INLINE_CHARACTERS = 2000
"""Longer prompts are tokenized in a thread, so that the streams of others go on meanwhile."""
MAX_TOKEN_CHARACTERS = 256
"""No tokenizer has longer tokens: what has more characters than so many for every token of the context is
refused unread. Tokenizing it would take seconds of a core."""
THOUGHT_MARK_TOKENS = 32
"""More than a mark of thoughts has, with the white space around it."""
LONGEST_GAP_S = 0.5
"""Instances tell of new tokens at least this often: what they have not told is lost with them."""


class Admission:
    """Checks and tokenizes, by the model that is asked for. Waits for its tokenizer and its first instance
    where they are not there yet."""

    def __init__(self, models: ServedModels, executor: Executor, patience_s: float) -> None:
        self._models = models
        self._executor = executor
        self._patience_s = patience_s

    def check(self, request: GenerationRequest) -> None:
        """Refuse at once what makes no sense for any model."""
        request.check()

    async def ready(self) -> None:
        """Return when there is a model for which nothing is missing. UnavailableError: no instance came."""
        await self._models.some(self._patience_s)

    async def admit(self, request: GenerationRequest, entry: RequestEntry) -> list[RunningAnswer]:
        """The answers that are to be given, as sequences of token ids.

        Raises InvalidRequestError, NotFoundError (model), or UnavailableError (no instance came).
        """
        model = entry.model = await self._models.wanted(request.model)
        text = await asyncio.shield(model.text)
        facts = await model.wait(self._patience_s)
        prompt, prefix = await self._tokenize(request, text, facts, model.prefixes)
        _check_prompt(request, prompt, facts)
        sampling = _fill_in(request, len(prompt), facts)
        size = sum(map(len, request.tools))
        sampling = await beside(size, partial(text.held, request, prompt, sampling))
        if (structure := sampling.structure) is not None:
            sampling.check()
            await text.check_structure(structure, facts.vocab_size, facts.eos_token_ids, request.owner)
        skip_special = not request.keep_special_tokens
        kept: frozenset[str] = frozenset()
        if request.marks and request.is_chat:
            entry.reading = _reading(request, text, prompt)
            kept = text.dialect.kept_tokens(tools=request.callable)

        def new_text() -> AnswerText | None:
            if request.skip_text and (sampling.structure is not None or not sampling.stop):
                return None
            return AnswerText(
                text.new_detokenizer(prompt, skip_special, kept),
                () if sampling.structure is not None else sampling.stop,
                min_tokens=sampling.min_tokens,
                keep=not request.skip_text,
            )

        # A greedy answer needs no seed, but instances expect one with every sequence.
        seed = sampling.seed if sampling.seed is not None else 0 if sampling.greedy else draw_seed()
        # A stop string is found here, and what is computed beyond it is in vain.
        piece_gap_s = 0.0 if sampling.stop else min(request.piece_gap_s, LONGEST_GAP_S)
        manner = request.manner if sampling.thought is None else f"{request.manner} thinks"
        features = prompt_features(request.prompt, request.client, manner)
        return [
            entry.new_answer(
                index,
                prompt,
                replace(sampling, seed=answer_seed(seed, index), n=1),
                new_text(),
                features,
                ttft_s=_seconds(request.ttft_ms),
                tpot_s=_seconds(request.tpot_ms),
                piece_gap_s=piece_gap_s,
                prefix=prefix,
                priority=request.priority,
                background=request.background,
            )
            for index in range(sampling.n)
        ]

    async def _tokenize(
        self, request: GenerationRequest, text: TextPort, facts: ModelFacts, prefixes: PrefixKeys
    ) -> tuple[array[int], PromptPrefix]:
        """Token ids, and by what their beginnings are found."""
        prompt = request.prompt
        root = prefixes.root(request.owner, request.cache_salt)
        encode: Callable[[], Sequence[int]]

        def read() -> tuple[array[int], PromptPrefix]:
            tokens = _token_array(encode())
            return tokens, prefixes.prefix(root, tokens)

        if isinstance(prompt, str):
            encode = partial(text.encode, prompt, facts.context_length)
        elif request.is_chat:
            encode = partial(
                text.encode_chat, request.turns, request.tools, facts.context_length, request.template
            )
        else:
            if len(prompt) >= facts.context_length:
                raise _leaves_no_room(request, len(prompt), facts)
            ids = [token for token in prompt if isinstance(token, int)]
            encode = partial(list, ids)
        size = request.characters
        most = facts.context_length * MAX_TOKEN_CHARACTERS
        if size > most:
            raise _does_not_fit(
                facts,
                f"The prompt has {size} characters; more than {most} cannot fit. Please reduce its length.",
                _prompt_field(request),
            )
        try:
            if max(size, len(prompt)) <= INLINE_CHARACTERS:
                return read()
            return await asyncio.get_running_loop().run_in_executor(self._executor, read)
        except TooManyTokensError as error:
            field = _prompt_field(request)
            raise _does_not_fit(
                facts,
                f"However, your {field} resulted in more than {error.at_least} tokens. "
                f"Please reduce the length of the {field}.",
                field,
            ) from None


def draw_seed() -> int:
    """A fresh 64-bit seed for a request that came without one."""
    return int.from_bytes(os.urandom(8), "little")


def answer_seed(seed: int, index: int) -> int:
    """Seed of one of n answers; the first one's is the request's own, so that n does not change it."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(4, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _token_array(token_ids: Sequence[int]) -> array[int]:
    try:
        return array("I", token_ids)
    except OverflowError as error:
        raise InvalidRequestError("token ids must be in [0, 2^32)", "prompt") from error


def _prompt_field(request: GenerationRequest) -> str:
    return "messages" if request.is_chat else "prompt"


def _check_prompt(request: GenerationRequest, prompt: array[int], facts: ModelFacts) -> None:
    if not prompt:
        raise InvalidRequestError("the prompt is empty: it has no tokens", "prompt")
    largest = max(prompt)
    if largest >= facts.vocab_size:
        raise InvalidRequestError(
            f"the prompt has token id {largest}, but the vocabulary ends at {facts.vocab_size - 1}", "prompt"
        )
    if len(prompt) + 1 > facts.context_length:
        raise _leaves_no_room(request, len(prompt), facts)


def _leaves_no_room(request: GenerationRequest, tokens: int, facts: ModelFacts) -> ContextLengthError:
    field = _prompt_field(request)
    return _does_not_fit(
        facts,
        f"However, your {field} resulted in {tokens} tokens, which leaves no room for an answer. "
        f"Please reduce the length of the {field}.",
        field,
    )


def _does_not_fit(facts: ModelFacts, why: str, field: str) -> ContextLengthError:
    # It begins with OpenAI's words: there are clients that look for them.
    known = f"This model's maximum context length is {facts.context_length} tokens."
    return ContextLengthError(f"{known} {why}", field)


def _reading(request: GenerationRequest, text: TextPort, prompt: Sequence[int]) -> Reading | None:
    """How answers to this prompt are read. None: they are words and nothing else."""
    dialect = text.dialect
    if not dialect.reads(tools=request.callable):
        return None
    end = b"".join(map(text.token_bytes, prompt[-THOUGHT_MARK_TOKENS:])).decode("utf-8", "replace")
    calls = request.calls_before if dialect.ids == "numbered" else 0
    return Reading(dialect, dialect.thinking_after(end), calls)


def _fill_in(request: GenerationRequest, prompt_tokens: int, facts: ModelFacts) -> SamplingParams:
    """Check against the model, and set max_tokens."""
    sampling = request.sampling
    sampling.check_vocabulary(facts.vocab_size)
    room = facts.context_length - prompt_tokens
    sent = None if request.clamp_max_tokens else sampling.max_tokens
    for name, wanted in (("max_tokens", sent or 0), ("min_tokens", sampling.min_tokens)):
        if wanted > room:
            field = _prompt_field(request)
            raise _does_not_fit(
                facts,
                f"However, you requested {prompt_tokens + wanted} tokens ({prompt_tokens} in the {field}, "
                f"{wanted} in the completion). Please reduce the length of the {field} or completion; "
                f"{name} may be {room} at most.",
                field if name == "max_tokens" and request.is_chat else name,
            )
    return replace(sampling, max_tokens=min(room, sampling.max_tokens or room))
