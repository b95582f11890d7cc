"""The reader of finished answers in JSON lines: {"prompt": .., "output_tokens": n, ..}."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidepipe_common.errors import ConfigError
from tidepipe_common.lengths.prompt import prompt_features
from tidepipe_common.lengths.request import Observation, RequestFeatures
from tidepipe_common.regular_files import open_text, why_unreadable
from tidepipe_common.types.request import ChatTurn, Prompt

CUT = frozenset({"length", "cancelled", "deadline", "abort"})
"""Reasons of an end that was not the answer's own."""


class _Turn(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: str
    content: str


class _Line(BaseModel):
    """One answer. prompt: text, a conversation, or token ids."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str | list[_Turn] | list[int]
    output_tokens: int = Field(ge=0)
    finish_reason: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    prompt_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    client: str = ""


def read_answers(path: Path) -> list[Observation]:
    """All lines, in their order; ConfigError names the first one that is not an answer."""
    observations = []
    try:
        with open_text(path, "utf-8-sig") as source:
            for number, line in enumerate(source, 1):
                if line.strip():
                    observations.append(_answer(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {why_unreadable(error)}") from error
    if not observations:
        raise ConfigError(f"{path} has no answers in it")
    return observations


def observation(line: Mapping[str, Any]) -> Observation:
    """One answer, its fields as in a file's line. ValueError if it is none."""
    return _observed(_Line.model_validate(line))


def _answer(line: str, where: str) -> Observation:
    try:
        return _observed(_Line.model_validate_json(line))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"][:1])
        raise ConfigError(
            f'{where}: {field or "line"}: {problem["msg"]}; a line is {{"prompt": .., "output_tokens": n}}'
        ) from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _observed(entry: _Line) -> Observation:
    limit = entry.max_tokens
    cut = entry.finish_reason in CUT or (
        entry.finish_reason is None and limit is not None and entry.output_tokens >= limit
    )
    if entry.finish_reason == "length" and limit is None:
        # Whatever the limit was, this is where it struck.
        limit = max(entry.output_tokens, 1)
    features = RequestFeatures(
        prompt_tokens=entry.prompt_tokens,
        max_tokens=limit,
        temperature=entry.temperature,
        prompt=prompt_features(_prompt(entry.prompt), entry.client),
    )
    found = Observation(features, entry.output_tokens, cut)
    if (fault := found.fault()) is not None:
        raise ValueError(fault)
    return found


def _prompt(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if prompt and isinstance(prompt[0], _Turn):
        return tuple(ChatTurn(turn.role, turn.content) for turn in prompt)
    return tuple(prompt)
