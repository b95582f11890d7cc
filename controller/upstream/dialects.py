"""The dialects of servers: how each is asked to go on from token ids, and read. No I/O.

A dialect that tells token ids loses nothing; one that tells text alone has it tokenized again, and what such
a server began cannot be continued elsewhere as it would have gone on.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from controller.scheduler.events import NewSequence
from tidepipe_common.text.text import quoted
from tidepipe_common.types.needs import EXTENSIONS, LOGPROBS, OURS, STRUCTURES
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams, TokenLogprob

_TOKEN = "token_id:"
_LONGEST_REASON = 300


class BrokenAnswerError(Exception):
    """A server said something that its dialect does not know."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    token_ids: new ones; None where only text is told. logprobs: one per token, if asked for. finish: why it
    ended, if it did; what ended it may be the last token. cached: prompt tokens that were not computed.
    """

    token_ids: Sequence[int] | None = ()
    text: str = ""
    logprobs: Sequence[PositionLogprobs] = ()
    finish: FinishReason | None = None
    cached: int | None = None

    @property
    def progress(self) -> bool:
        """Is there something new in it?"""
        return bool(self.token_ids or self.text or self.finish)


class Reader(Protocol):
    """Reads one answer, event by event."""

    def read(self, event: Any) -> Piece:
        """BrokenAnswerError if it makes no sense."""
        ...


class Dialect(Protocol):
    """A way to ask, as a value."""

    @property
    def name(self) -> str:
        """As in the settings."""
        ...

    @property
    def path(self) -> str:
        """Where to ask."""
        ...

    @property
    def tells_tokens(self) -> bool:
        """Does it tell token ids?"""
        ...

    @property
    def loses(self) -> str:
        """What cannot be promised with it, for people."""
        ...

    @property
    def lacks(self) -> frozenset[str]:
        """What it cannot do for a request; see tidepipe_common/types/needs.py."""
        ...

    def body(self, model: str, sequence: NewSequence, ends: Sequence[int]) -> dict[str, Any]:
        """The request. ends: tokens that end the model's outputs."""
        ...

    def reader(self, sequence: NewSequence) -> Reader:
        """For its answer."""
        ...


def tokens_left(sequence: NewSequence) -> int:
    """Output tokens that it may still have; routers always say how many."""
    return max(1, (sequence.sampling.max_tokens or 0) - len(sequence.output))


def _stops(sampling: SamplingParams, ends: Sequence[int]) -> list[int]:
    return list(dict.fromkeys([*sampling.stop_token_ids, *(() if sampling.ignore_eos else ends)]))


def _common(sequence: NewSequence) -> dict[str, Any]:
    sampling = sequence.sampling
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }


@dataclass(frozen=True, slots=True)
class Vllm:
    """vLLM's completions, with token ids."""

    name: str = "vllm"
    path: str = "/v1/completions"
    tells_tokens: bool = True
    loses: str = "its outputs' exact tokens may differ from those of other engines, by rounding"
    lacks: frozenset[str] = frozenset(OURS)

    def body(self, model: str, sequence: NewSequence, ends: Sequence[int]) -> dict[str, Any]:
        """Part of Dialect. What a tenant computed is found by that tenant alone, as everywhere here."""
        sampling, given = sequence.sampling, len(sequence.output)
        body = {
            **_common(sequence),
            "model": model,
            "prompt": [*sequence.prompt, *sequence.output],
            "max_tokens": tokens_left(sequence),
            "min_tokens": max(0, sampling.min_tokens - given),
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": _stops(sampling, ends),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "cache_salt": sequence.prefix_root or secrets.token_hex(16),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed - 2**64 if sampling.seed >= 2**63 else sampling.seed
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if sampling.logprobs is not None:
            body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        if (structure := sampling.structure) is not None:
            key = "json" if structure.kind == "json_schema" else "regex"
            body["structured_outputs"] = {key: structure.text}
        return body

    def reader(self, sequence: NewSequence) -> Reader:
        """Part of Dialect."""
        return _CompletionReader(tells_tokens=True, logprobs=sequence.sampling.logprobs)


@dataclass(frozen=True, slots=True)
class OpenAi:
    """Completions as OpenAI's API has them: text comes back.

    extended: it takes the fields that servers of open models usually add.
    """

    extended: bool = True
    name: str = "openai"
    path: str = "/v1/completions"
    tells_tokens: bool = False
    loses: str = (
        "it answers with text, which is tokenized again: token counts may differ from its own, there are no "
        "log-probabilities, and what it has begun cannot be continued elsewhere"
    )

    @property
    def lacks(self) -> frozenset[str]:
        """Part of Dialect."""
        return frozenset((*OURS, LOGPROBS, STRUCTURES, *(() if self.extended else EXTENSIONS)))

    def body(self, model: str, sequence: NewSequence, ends: Sequence[int]) -> dict[str, Any]:
        """Part of Dialect."""
        sampling = sequence.sampling
        body = {
            **_common(sequence),
            "model": model,
            "prompt": [*sequence.prompt, *sequence.output],
            "max_tokens": tokens_left(sequence),
            "stream": True,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed % 2**31
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if self.extended:
            # Always: the server's own defaults may be others.
            body |= {"top_k": sampling.top_k, "min_p": sampling.min_p}
            body |= {"repetition_penalty": sampling.repetition_penalty}
            body |= _extensions(sampling)
        return body

    def reader(self, sequence: NewSequence) -> Reader:
        """Part of Dialect."""
        return _CompletionReader(tells_tokens=False, logprobs=None)


def _extensions(sampling: SamplingParams) -> dict[str, Any]:
    """What a request asks for that OpenAI's completions do not know."""
    asked: dict[str, Any] = {}
    if sampling.top_k:
        asked["top_k"] = sampling.top_k
    if sampling.min_p:
        asked["min_p"] = sampling.min_p
    if sampling.repetition_penalty != 1.0:
        asked |= {
            "repetition_penalty": sampling.repetition_penalty,
            "repeat_penalty": sampling.repetition_penalty,
        }
    if sampling.min_tokens:
        asked["min_tokens"] = sampling.min_tokens
    if sampling.ignore_eos:
        asked["ignore_eos"] = True
    if sampling.stop_token_ids:
        asked["stop_token_ids"] = list(sampling.stop_token_ids)
    return asked


@dataclass(frozen=True, slots=True)
class SgLang:
    """SGLang's own endpoint, which takes and tells token ids."""

    name: str = "sglang"
    path: str = "/generate"
    tells_tokens: bool = True
    loses: str = (
        "no log-probabilities, seeds are not passed on, and computed beginnings are shared among tenants; "
        "its outputs' exact tokens may differ from those of other engines, by rounding"
    )
    lacks: frozenset[str] = frozenset((*OURS, LOGPROBS))

    def body(self, model: str, sequence: NewSequence, ends: Sequence[int]) -> dict[str, Any]:
        """Part of Dialect."""
        sampling, given = sequence.sampling, len(sequence.output)
        params = {
            **_common(sequence),
            "max_new_tokens": tokens_left(sequence),
            "min_new_tokens": max(0, sampling.min_tokens - given),
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": _stops(sampling, ends),
        }
        if sampling.logit_bias:
            params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if (structure := sampling.structure) is not None:
            params["json_schema" if structure.kind == "json_schema" else "regex"] = structure.text
        return {"input_ids": [*sequence.prompt, *sequence.output], "sampling_params": params, "stream": True}

    def reader(self, sequence: NewSequence) -> Reader:
        """Part of Dialect."""
        return _SgLangReader()


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp's own endpoint, which takes and tells token ids."""

    name: str = "llama.cpp"
    path: str = "/completion"
    tells_tokens: bool = True
    loses: str = (
        "no log-probabilities, no structures, no min_tokens; penalties count the prompt, and computed "
        "beginnings are shared among tenants; its outputs' exact tokens may differ from those of other "
        "engines, by rounding"
    )
    # Its log-probabilities lack tokens that are half a character, and its grammars what they do not know.
    lacks: frozenset[str] = frozenset((*OURS, LOGPROBS, STRUCTURES, "min_tokens"))

    def body(self, model: str, sequence: NewSequence, ends: Sequence[int]) -> dict[str, Any]:
        """Part of Dialect. Stop tokens it does not know: whoever reads ends the answer there."""
        sampling, left = sequence.sampling, tokens_left(sequence)
        body: dict[str, Any] = {
            **_common(sequence),
            "prompt": [*sequence.prompt, *sequence.output],
            "n_predict": left,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            # All of them: newer builds refuse the -1 that meant so.
            "repeat_last_n": len(sequence.prompt) + len(sequence.output) + left,
            # In the order that our own stages have.
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "ignore_eos": sampling.ignore_eos,
            "stream": True,
            "return_tokens": True,
        }
        if sampling.seed is not None:
            # A beginning that it has computed before rounds otherwise, and then draws otherwise.
            body |= {"seed": sampling.seed % 2**31, "cache_prompt": False}
        if sampling.logit_bias:
            body["logit_bias"] = [[token, bias] for token, bias in sampling.logit_bias.items()]
        return body

    def reader(self, sequence: NewSequence) -> Reader:
        """Part of Dialect."""
        return _LlamaCppReader()


class _CompletionReader:
    """Chunks of /v1/completions. logprobs: how many of the most likely tokens were asked for."""

    def __init__(self, *, tells_tokens: bool, logprobs: int | None) -> None:
        self._tells_tokens = tells_tokens
        self._logprobs = logprobs

    def read(self, event: Any) -> Piece:
        """Part of Reader."""
        _check(event)
        choices = event.get("choices")
        if not choices:  # usage, or a sign of life
            return Piece(cached=_cached(event))
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            raise BrokenAnswerError(f"choices is {quoted(choices)}")
        choice: Mapping[str, Any] = choices[0]
        finish = _finish(choice.get("finish_reason"))
        if not self._tells_tokens:
            text = choice.get("text") or ""
            if not isinstance(text, str):
                raise BrokenAnswerError(f"text is {quoted(text)}")
            return Piece(None, text, finish=finish, cached=_cached(event))
        ids = _tokens(choice.get("token_ids") or [])
        logprobs: tuple[PositionLogprobs, ...] = ()
        if self._logprobs is not None and ids:
            logprobs = _logprobs(choice.get("logprobs"), ids, self._logprobs)
        return Piece(ids, "", logprobs, finish, _cached(event))


class _LlamaCppReader:
    """Events of llama.cpp's /completion.

    Of a character that takes several tokens it tells the last one alone, with all of the text: then the text
    counts, which is tokenized again.
    """

    def __init__(self) -> None:
        self._known = 0

    def read(self, event: Any) -> Piece:
        """Part of Reader."""
        _check(event)
        ids, text = _tokens(event.get("tokens") or []), event.get("content") or ""
        count = event.get("tokens_predicted", self._known)
        if not isinstance(count, int) or isinstance(count, bool) or count < self._known:
            raise BrokenAnswerError(f"tokens_predicted is {quoted(count)} after {self._known}")
        if not isinstance(text, str):
            raise BrokenAnswerError(f"content is {quoted(text)}")
        finish = None
        if event.get("stop"):
            if (kind := event.get("stop_type")) not in _LLAMA_STOPS:
                raise BrokenAnswerError(f"it ended by {quoted(kind)}")
            finish = _LLAMA_STOPS[kind]
        lost = bool(ids) and count - self._known > len(ids)
        self._known = count
        return Piece(None, text, finish=finish) if lost else Piece(ids, finish=finish)


_LLAMA_STOPS = {"eos": FinishReason.STOP, "word": FinishReason.STOP, "limit": FinishReason.LENGTH}


class _SgLangReader:
    """Events of /generate, which tell all tokens so far or, by the server's settings, the new ones."""

    def __init__(self) -> None:
        self._known = 0

    def read(self, event: Any) -> Piece:
        """Part of Reader."""
        _check(event)
        meta, told = event.get("meta_info"), event.get("output_ids")
        if not isinstance(meta, dict):
            raise BrokenAnswerError(f"meta_info is {quoted(meta)}")
        ids = _tokens(told or [])
        count, reason = meta.get("completion_tokens"), meta.get("finish_reason")
        if not isinstance(count, int) or isinstance(count, bool) or count < self._known:
            raise BrokenAnswerError(f"completion_tokens is {quoted(count)} after {self._known}")
        finish = None
        if reason is not None:
            if not isinstance(reason, dict):
                raise BrokenAnswerError(f"finish_reason is {quoted(reason)}")
            if reason.get("type") == "abort":
                raise BrokenAnswerError(f"it gave the request up: {quoted(reason.get('message'))}")
            finish = _finish(reason.get("type"))
            matched = reason.get("matched")
            if isinstance(matched, int) and (not ids or ids[-1] != matched) and len(ids) < count:
                ids, count = [*ids, matched], max(count, self._known)
        fresh = count - self._known
        if fresh > len(ids):
            raise BrokenAnswerError(f"{len(ids)} tokens where {fresh} are new")
        self._known = count
        cached = meta.get("cached_tokens")
        return Piece(
            ids[len(ids) - fresh :], finish=finish, cached=cached if isinstance(cached, int) else None
        )


def _check(event: Any) -> None:
    if not isinstance(event, dict):
        raise BrokenAnswerError(f"an event is {quoted(event)}")
    if (error := event.get("error")) is not None:
        raise BrokenAnswerError(error_text(error))


def error_text(error: Any) -> str:
    """What a server says is wrong, bounded, for people."""
    said = (error.get("message") or error) if isinstance(error, dict) else error
    return repr((said if isinstance(said, str) else json.dumps(said))[:_LONGEST_REASON])


def _tokens(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
        raise BrokenAnswerError(f"token ids are {quoted(value)}")
    return value


_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


def _finish(value: Any) -> FinishReason | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in _FINISH:
        raise BrokenAnswerError(f"it ended by {quoted(value)}")
    return _FINISH[value]


def _cached(event: Mapping[str, Any]) -> int | None:
    usage = event.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if type(cached) is int and cached >= 0 else None


def _logprobs(told: Any, ids: Sequence[int], most: int) -> tuple[PositionLogprobs, ...]:
    """Of each new token; BrokenAnswerError if they are not those that were asked for."""
    try:
        chosen, tops = told["token_logprobs"], told["top_logprobs"] or [None] * len(ids)
        entries = list(zip(ids, chosen, tops, strict=True))
        return tuple(
            PositionLogprobs(TokenLogprob(token, float(value)), _best(top or {}, most))
            for token, value, top in entries
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BrokenAnswerError(f"log-probabilities are {quoted(told)}") from error


def _best(top: Mapping[str, Any], most: int) -> tuple[TokenLogprob, ...]:
    entries = [TokenLogprob(int(name.removeprefix(_TOKEN)), float(value)) for name, value in top.items()]
    return tuple(sorted(entries, key=lambda one: -one.logprob)[:most])


DIALECTS: Mapping[str, Dialect] = {one.name: one for one in (Vllm(), SgLang(), LlamaCpp(), OpenAi())}
