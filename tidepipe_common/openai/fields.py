"""Fields that may have several shapes, and those that TidePipe ignores or refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Sized
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from tidepipe_common.limits import (
    MAX_LOGIT_BIAS,
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    MAX_STOP_STRING_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_USER_CHARACTERS,
)
from tidepipe_common.openai.numbers import MAX_INT, TokenId
from tidepipe_common.openai.validation import NOTHING_ELSE, Refusal, checked_text, unknown_field
from tidepipe_common.text.json_text import kind
from tidepipe_common.text.text import quoted

_TOKEN_NAME = re.compile("(0|[1-9][0-9]{0,9})")
"""A token id as a name in logit_bias, in one way only: "01" beside "1" would be one id twice."""

IGNORED = frozenset(
    {
        "metadata",
        "store",
        "prompt_cache_key",
        "prompt_cache_retention",
        "detokenize",
    }
)
"""Fields that change nothing of the answer."""
CACHE_CONTROL = "cache_control"
"""Anthropic's mark in a part, which changes nothing: beginnings are found anyway."""
IGNORED_IN_COMPLETIONS = IGNORED | {"parallel_tool_calls", "include_reasoning"}

_PART = {"type", "text", CACHE_CONTROL}

_FUNCTIONS = "functions are not supported; use tools"
_ONE_FORMAT = "only text answers are supported"

REFUSED = {
    "length_penalty": Refusal("beam search is not supported", (1, 1.0)),
    "early_stopping": Refusal("beam search is not supported", (False,)),
    "use_beam_search": Refusal("beam search is not supported", (False,)),
    "spaces_between_special_tokens": Refusal("only true is supported", (True,)),
    "truncate_prompt_tokens": Refusal("not supported; send fewer tokens"),
    "allowed_token_ids": Refusal("not supported; see structured_outputs"),
    "bad_words": Refusal("not supported; see logit_bias", ([],)),
    "logits_processors": Refusal("not supported", ([],)),
    "guided_grammar": Refusal("only guided_json, guided_regex and guided_choice are supported"),
}
"""Fields of both APIs that would change the answer, but cannot: better an error than a wrong answer."""

REFUSED_IN_CHAT = REFUSED | {
    "functions": Refusal(_FUNCTIONS, ([],)),
    "function_call": Refusal(_FUNCTIONS, ("none", "auto")),
    "echo": Refusal("not supported in chats", (False,)),
    "modalities": Refusal(_ONE_FORMAT, (["text"],)),
    "audio": Refusal(_ONE_FORMAT),
    "prediction": Refusal("predicted outputs are not supported"),
    "web_search_options": Refusal("web search is not supported"),
    "verbosity": Refusal("not supported", ("medium",)),
    "add_special_tokens": Refusal("only false is supported: the chat template writes them", (False,)),
    "chat_template": Refusal("only the model's own chat template is supported"),
}

REFUSED_IN_COMPLETIONS = REFUSED | {
    "best_of": Refusal("not supported; use n", (1,)),
    "suffix": Refusal("inserting text is not supported", ("",)),
    "add_special_tokens": Refusal("only true is supported; send token ids for full control", (True,)),
}


def _stop(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (checked_text(value),)
    if isinstance(value, list):
        _few(value, MAX_STOP_STRINGS)
        if all(isinstance(item, str) for item in value):
            return tuple(checked_text(item) for item in value)
    raise ValueError(f"must be a string or a list of strings, got {_shape(value)}")


def _stop_token_ids(value: Any) -> Any:
    if isinstance(value, list):
        _few(value, MAX_STOP_TOKEN_IDS)
    return value


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object from token ids to numbers, got {kind(value)}")
    _few(value, MAX_LOGIT_BIAS)
    biases = {}
    for name, bias in value.items():
        if not (isinstance(name, str) and _TOKEN_NAME.fullmatch(name)):
            raise ValueError(f'must have token ids as names, such as "50256", got {quoted(name)}')
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise ValueError(f"must have numbers as values, got {kind(bias)} for {quoted(name)}")
        # Integers may be too large for a float; like infinity they are refused with the other ranges.
        biases[int(name)] = float(bias) if abs(bias) < 1e9 else math.inf
    return biases


_TextOrIds = str | tuple[int, ...]
_ONE_OR_SEVERAL = "must be a string or a list of token ids, or a list of several such"


def texts_or_ids(value: Any, most: int) -> tuple[_TextOrIds, ...]:
    """One text or list of token ids, or up to `most` of them; ValueError if it is something else."""
    if isinstance(value, str):
        return (_text_or_ids(value),)
    if not isinstance(value, list):
        raise ValueError(f"{_ONE_OR_SEVERAL}, got {_shape(value)}")
    if not value:
        raise ValueError("must not be an empty list")
    if not any(isinstance(item, str | list) for item in value):
        return (_text_or_ids(value),)
    _few(value, most)
    found = []
    for number, item in enumerate(value):
        try:
            found.append(_text_or_ids(item))
        except ValueError as error:
            raise ValueError(f"{_ONE_OR_SEVERAL}; its entry {number} {error}") from None
    return tuple(found)


def _text_or_ids(value: Any) -> _TextOrIds:
    if isinstance(value, str):
        return checked_text(value)
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ValueError(f"must be a string or a list of token ids, got {_shape(value, int)}")
    if not value:
        raise ValueError("must not be an empty list")
    return token_ids(value)


def token_ids(value: Any) -> tuple[int, ...]:
    """A list of token ids; ValueError if it is something else."""
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ValueError(f"must be a list of token ids, got {_shape(value, int)}")
    _few(value, MAX_PROMPT_TOKENS)
    if value and not (min(value) >= 0 and max(value) <= MAX_INT):
        raise ValueError(f"must have token ids in [0, {MAX_INT}]")
    return tuple(value)


def _prompts(value: Any) -> tuple[_TextOrIds, ...]:
    return texts_or_ids(value, MAX_PROMPTS)


def _content(value: Any) -> str:
    if isinstance(value, str):
        return checked_text(value)
    if not isinstance(value, list):
        raise ValueError(f"must be a string or a list of text parts, got {_shape(value)}")
    return "\n".join(_text_part(number, part) for number, part in enumerate(value))


def _text_part(number: int, part: Any) -> str:
    if not isinstance(part, dict):
        raise ValueError(
            f'must be a string or a list of parts {{"type": "text", "text": ...}}, got {kind(part)} in it'
        )
    if part.get("type") not in ("text", "input_text"):
        raise ValueError(
            f"part {number} has type {quoted(part.get('type'))}; only 'text' is supported, no images or audio"
        )
    if unknown := unknown_field(part, _PART):
        raise ValueError(f"part {number} has the unknown field {quoted(unknown)}")
    try:
        return checked_text(part.get("text"))
    except ValueError as error:
        raise ValueError(f"part {number}: text {error}") from None


def _user_name(value: Any) -> str | None:
    # It changes nothing of the answer, so nothing is refused.
    if not isinstance(value, str):
        return None
    return value[:MAX_USER_CHARACTERS].encode(errors="replace").decode()


def _few(value: Sized, most: int) -> None:
    """Counted before anything is made of the entries."""
    if len(value) > most:
        raise ValueError(f"may have {most} entries, got {len(value)}")


def _shape(value: Any, wanted: type = str) -> str:
    """What it is; of a list, which of its entries is none of those that are wanted."""
    if isinstance(value, list):
        odd = (item for item in value if type(item) is not wanted)
        return f"a list with {kind(next(odd))} in it" if value else "an empty list"
    return kind(value)


_TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MAX_INT}, "minItems": 1}
_TEXT = {"type": "string", "minLength": 1}
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARACTERS}
_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "input_text"]}, "text": {"type": "string"}, CACHE_CONTROL: {}},
    "required": ["type", "text"],
    "additionalProperties": NOTHING_ELSE,
}

Stop = Annotated[
    tuple[str, ...],
    BeforeValidator(_stop),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOP_STRINGS}]}),
]
LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": f"^{_TOKEN_NAME.pattern}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_LOGIT_BIAS,
        }
    ),
]
StopTokenIds = Annotated[
    list[TokenId],
    BeforeValidator(_stop_token_ids),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": MAX_INT},
            "maxItems": MAX_STOP_TOKEN_IDS,
        }
    ),
]


def one_or_several(most: int) -> WithJsonSchema:
    """The schema of what `texts_or_ids` takes."""
    several = {"type": "array", "items": {"anyOf": [_TEXT, _TOKEN_IDS]}, "minItems": 1, "maxItems": most}
    return WithJsonSchema({"anyOf": [_TEXT, _TOKEN_IDS, several]})


Prompts = Annotated[tuple[str | tuple[int, ...], ...], BeforeValidator(_prompts), one_or_several(MAX_PROMPTS)]
Content = Annotated[
    str,
    BeforeValidator(_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]}),
]
UserName = Annotated[str | None, BeforeValidator(_user_name), WithJsonSchema({})]
