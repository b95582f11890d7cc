"""The admission of requests: each becomes sequences of token ids, or is refused in words."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from router.instances.sequence import PrefixKeys, PromptPrefix
from router.instances.served_model import ModelFacts
from router.models.models import ServedModels
from router.requests.entry import RequestEntry
from router.requests.output import AnswerText
from router.requests.running_answer import RunningAnswer
from router.requests.text_port import TextPort, TooManyTokensError
from tidepipe_common.aside import Turns, beside
from tidepipe_common.dialects import Reading
from tidepipe_common.errors import ContextLengthError, InvalidRequestError
from tidepipe_common.lengths.prompt import Manner, PromptFeatures, name_hash, prompt_features
from tidepipe_common.limits import MAX_PROMPT_LOGPROBS
from tidepipe_common.types.prompt_reading import NUMBER_BYTES
from tidepipe_common.types.request import GenerationRequest, Prompt, about_prompt
from tidepipe_common.types.sampling import SamplingParams

INLINE_CHARACTERS = 2000
"""Longer prompts are tokenized in a thread, so that the streams of others go on meanwhile."""
MAX_TOKEN_CHARACTERS = 256
"""No tokenizer has longer tokens: what has more characters than so many for every token of the context is
refused unread. Tokenizing it would take seconds of a core."""
_Made = TypeVar("_Made")

THOUGHT_MARK_TOKENS = 32
"""More than a mark of thoughts has, with the white space around it."""
LONGEST_GAP_S = 0.5
"""Instances tell of new tokens at least this often: what they have not told is lost with them."""


class Admission:
    """Checks and tokenizes, by the model that is asked for. Waits for its tokenizer and its first instance
    where they are not there yet."""

    def __init__(self, models: ServedModels, executor: Executor, patience_s: float) -> None:
        self._models = models
        self._turns = Turns(executor)
        self._patience_s = patience_s

    def check(self, request: GenerationRequest) -> None:
        """Refuse at once what makes no sense for any model."""
        request.check()

    async def ready(self) -> None:
        """Return when there is a model for which nothing is missing. UnavailableError: no instance came."""
        await self._models.some(self._patience_s)

    async def model(self, name: str | None) -> tuple[TextPort, ModelFacts]:
        """Text and facts of the model that a request calls so; ModelNotFoundError if that is not served."""
        model = await self._models.wanted(name)
        return await asyncio.shield(model.text), await model.wait(self._patience_s)

    async def check_model(self, name: str | None) -> None:
        """ModelNotFoundError if no model is called so, for what is admitted later."""
        await self._models.wanted(name)

    async def beside(self, size: int, work: Callable[[], _Made]) -> _Made:
        """What `work` makes of so many characters or tokens.

        If they are many, beside the event loop, one after the other, owners in turn.
        """
        if size <= INLINE_CHARACTERS:
            return work()
        return await self._turns.made(work)

    async def admit(self, request: GenerationRequest, entry: RequestEntry) -> list[RunningAnswer]:
        """The answers that are to be given, as sequences of token ids.

        Raises InvalidRequestError, NotFoundError (model), or UnavailableError (no instance came).
        """
        model = entry.model = await self._models.wanted(request.model)
        adapter = model.adapter(request.model)
        text = await asyncio.shield(model.text)
        facts = await model.wait(self._patience_s)
        if request.sampling.pooling is not None:
            if text.pooling is None:
                raise InvalidRequestError("there are no embeddings of this model (--pooling off)", "model")
            request = replace(request, sampling=replace(request.sampling, pooling=text.pooling))
        tokenized = await self._tokenize(request, text, facts, model.prefixes, adapter)
        samplings = []
        for number, (prompt, _) in enumerate(tokenized):
            with _of_prompt(number, request):
                _check_prompt(request, prompt, facts)
                samplings.append(_fill_in(request, len(prompt), facts))
        _check_prompt_logprobs(request, sum(len(prompt) for prompt, _ in tokenized))
        size = sum(map(len, request.tools))
        wanted = await beside(size, partial(text.held, request, tokenized[0][0], samplings[0]))
        if (structure := wanted.structure) is not None:
            wanted.check()
            await text.check_structure(structure, facts.vocab_size, facts.eos_token_ids, request.owner)
        skip_special = not request.keep_special_tokens
        kept: frozenset[str] = frozenset()
        if request.marks and request.is_chat:
            entry.reading = _reading(request, text, prompt)
            kept = text.dialect.kept_tokens(tools=request.callable)

        def new_text(prompt: array[int]) -> AnswerText | None:
            if request.skip_text and (wanted.structure is not None or not wanted.stop):
                return None
            return AnswerText(
                text.new_detokenizer(prompt, skip_special, kept),
                () if wanted.structure is not None else wanted.stop,
                min_tokens=wanted.min_tokens,
                keep=not request.skip_text,
            )

        # A greedy answer needs no seed, but instances expect one with every sequence.
        seed = wanted.seed if wanted.seed is not None else 0 if wanted.greedy else draw_seed()
        # A stop string is found here, and what is computed beyond it is in vain.
        piece_gap_s = 0.0 if wanted.stop else min(request.piece_gap_s, LONGEST_GAP_S)
        features = await self.beside(request.characters, partial(_features, request, wanted))
        return [
            entry.new_answer(
                number * wanted.n + index,
                prompt,
                # Of equal prompts with one seed the answers are equal, as if each had been sent alone.
                replace(
                    wanted,
                    max_tokens=samplings[number].max_tokens,
                    seed=answer_seed(seed, index),
                    n=1,
                    prompt_logprobs=None if index else wanted.prompt_logprobs,
                ),
                new_text(prompt),
                features[number],
                ttft_s=_seconds(request.ttft_ms),
                tpot_s=_seconds(request.tpot_ms),
                piece_gap_s=piece_gap_s,
                prefix=prefix,
                priority=request.priority,
                background=request.background,
                adapter=adapter,
            )
            for number, (prompt, prefix) in enumerate(tokenized)
            for index in range(wanted.n)
        ]

    async def _tokenize(
        self,
        request: GenerationRequest,
        text: TextPort,
        facts: ModelFacts,
        prefixes: PrefixKeys,
        adapter: str,
    ) -> list[tuple[array[int], PromptPrefix]]:
        """Token ids of each prompt, and by what their beginnings are found."""
        # Who needs all of its prompt computed shares no beginning.
        whole = request.sampling.needs_whole_prompt
        root = b"" if whole else prefixes.root(request.owner, request.cache_salt)
        encoders = []
        for number, prompt in enumerate(request.prompts):
            with _of_prompt(number, request):
                encoders.append(_encoder(request, prompt, text, facts))

        left = threading.Event()

        def read() -> list[tuple[array[int], PromptPrefix]]:
            found = []
            for number, encode in enumerate(encoders):
                if left.is_set():
                    break  # whoever asked has gone
                with _of_prompt(number, request):
                    tokens = _token_array(encode())
                    found.append((tokens, prefixes.prefix(root, tokens, adapter)))
            return found

        ids = 0 if request.is_chat else sum(len(one) for one in request.prompts if not isinstance(one, str))
        try:
            return await self.beside(max(request.characters, ids), read)
        finally:
            left.set()


def _encoder(
    request: GenerationRequest, prompt: Prompt, text: TextPort, facts: ModelFacts
) -> Callable[[], Sequence[int]]:
    """What makes token ids of one of its prompts, which may take long. ContextLengthError: it cannot fit."""
    size, most = 0, facts.context_length * MAX_TOKEN_CHARACTERS
    encode: Callable[[], Sequence[int]]
    if isinstance(prompt, str):
        size = len(prompt)
        encode = partial(text.encode, prompt, facts.context_length)
    elif request.is_chat:
        size = request.characters
        encode = partial(
            text.encode_chat, request.turns, request.tools, facts.context_length, request.template
        )
    else:
        if len(prompt) >= facts.context_length:
            raise _leaves_no_room(request, len(prompt), facts)
        ids = [token for token in prompt if isinstance(token, int)]
        return partial(list, ids)
    if size > most:
        raise _does_not_fit(
            facts,
            f"The prompt has {size} characters; more than {most} cannot fit. Please reduce its length.",
            _prompt_field(request),
        )

    def read() -> Sequence[int]:
        try:
            return encode()
        except TooManyTokensError as error:
            field = _prompt_field(request)
            raise _does_not_fit(
                facts,
                f"However, your {field} resulted in more than {error.at_least} tokens. "
                f"Please reduce the length of the {field}.",
                field,
            ) from None

    return read


@contextlib.contextmanager
def _of_prompt(number: int, request: GenerationRequest) -> Iterator[None]:
    """What is wrong with one of several prompts says with which."""
    try:
        yield
    except InvalidRequestError as error:
        if not request.more_prompts:
            raise
        raise about_prompt(number, error) from None


def _features(request: GenerationRequest, wanted: SamplingParams) -> list[PromptFeatures]:
    """What the length predictor may know of each of its prompts. wanted: what answers are held to."""
    if wanted.pooling is not None:
        # There will be no answer.
        return [PromptFeatures()] * len(request.prompts)
    thinks, structure = wanted.thought is not None, wanted.structure
    manner = Manner(
        key=f"{request.manner} thinks" if thinks else request.manner,
        tools=len(request.tools) if request.callable else 0,
        must_call=request.callable and request.tool_choice.mode == "required",
        thinks=thinks,
        structure_characters=0 if structure is None else len(structure.text),
        least_tokens=wanted.min_tokens,
        stop_strings=len(wanted.stop),
    )
    owner = name_hash(request.owner)
    return [
        replace(prompt_features(prompt, request.client, manner), unlearned=request.unlearned, owner=owner)
        for prompt in request.prompts
    ]


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


def prompt_logprobs_bytes(request: GenerationRequest, tokens: int) -> int:
    """Memory of the log-probabilities of its prompts, which have so many tokens together."""
    top = request.sampling.prompt_logprobs
    return 0 if top is None else tokens * (2 * (1 + top) + 1) * NUMBER_BYTES


def _check_prompt_logprobs(request: GenerationRequest, tokens: int) -> None:
    top = request.sampling.prompt_logprobs
    if top is not None and tokens * (1 + top) > MAX_PROMPT_LOGPROBS:
        raise InvalidRequestError(
            f"{tokens} tokens of the prompt with {1 + top} log-probabilities each are more than the "
            f"{MAX_PROMPT_LOGPROBS} that one request may ask for; ask for fewer, or send fewer prompts",
            "prompt",
        )


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
    return replace(
        sampling, max_tokens=room if sampling.max_tokens is None else min(room, sampling.max_tokens)
    )
