"""Readers of workload files. The format is told by the content, not by the name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tidepipe_common.errors import ConfigError
from tidepipe_common.regular_files import read_text, why_unreadable
from tidepipe_common.types.request import ChatTurn, Prompt
from workloads.arrivals import MIXES
from workloads.hash_traces import hash_trace
from workloads.mixes import SimRequest, Workload
from workloads.sessions import SESSION_MIXES, session_mix

CHARACTERS_PER_TOKEN = 4
"""For texts without a tokenizer at hand; English text has about so many."""
DEFAULT_MAX_TOKENS = 256
_SYNTHETIC_REQUESTS = 5000


def open_workload(source: str, requests: int | None, seed: int) -> Workload:
    """A file; or a synthetic workload by its name, of so many requests.

    Azure CSV (TIMESTAMP,ContextTokens,GeneratedTokens), ShareGPT JSON ([{"conversations": ..}]), Mooncake
    JSONL (timestamp, input_length, output_length, hash_ids), OpenAI batch JSONL, answers as JSONL
    ({"prompt": .., "output_tokens": n}, as `tidepipe predictor train` reads), or [{"prompt": .., "out": n}].
    """
    path = Path(source)
    if not path.exists():
        if source in MIXES:
            return MIXES[source](requests or _SYNTHETIC_REQUESTS, seed)
        if (mix := session_mix(source)) is not None:
            return mix.draw(source, requests or _SYNTHETIC_REQUESTS, seed)
    try:
        text = read_text(path, "utf-8-sig")
    except FileNotFoundError as error:
        known = ", ".join((*MIXES, *SESSION_MIXES))
        raise ConfigError(f"cannot read the workload {source}: neither a file nor one of {known}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the workload {source}: {why_unreadable(error)}") from error
    try:
        found = tuple(_parse(text))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    except (ValueError, RecursionError, csv.Error) as error:
        why = f"not JSON: {error}" if isinstance(error, json.JSONDecodeError) else "it cannot be read"
        raise ConfigError(f"{source}: not a workload that is known here: {why}") from error
    if not found:
        raise ConfigError(f"{source}: no requests in it")
    start = min(one.arrival_s for one in found)
    return Workload(path.name, tuple(replace(one, arrival_s=one.arrival_s - start) for one in found))


def _parse(text: str) -> Iterable[SimRequest]:
    head = text.lstrip()[:1]
    if head == "[":
        return _array(json.loads(text))
    if head == "{":
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        if "input_length" in lines[0]:
            return hash_trace(lines)
        if "output_tokens" in lines[0]:
            return _each(lines, _answer, 'answers, {"prompt": .., "output_tokens": n}')
        return _each(lines, _openai_batch, "an OpenAI batch")
    table = csv.DictReader(io.StringIO(text))
    if "ContextTokens" not in (table.fieldnames or ()):
        what = "neither JSON nor a CSV with ContextTokens" if head else "nothing is in it"
        raise ConfigError(f"not a workload that is known here: {what}")
    return _each(table, _azure, "an Azure CSV, TIMESTAMP,ContextTokens,GeneratedTokens")


def _each(items: Iterable[Any], read: Callable[[Any], SimRequest | None], form: str) -> Iterator[SimRequest]:
    """What is read of each item. ConfigError for the first that is not as it should be in that form."""
    for number, item in enumerate(items, start=1):
        try:
            request = read(item)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(f"request {number} is none of {form}") from error
        if request is not None:
            yield request


def _azure(row: dict[str, str]) -> SimRequest:
    # Seven digits of fraction: more than datetime takes.
    stamp = datetime.fromisoformat(row["TIMESTAMP"][:26].strip()).timestamp()
    return SimRequest(int(row["ContextTokens"]), int(row["GeneratedTokens"]), arrival_s=stamp)


def _openai_batch(line: dict[str, Any]) -> SimRequest:
    """The output's length is not known beforehand: its limit stands for it."""
    body = line["body"]
    prompt = body["prompt"] if "prompt" in body else body["messages"]
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS
    return SimRequest(_prompt_tokens(prompt), int(limit), max_tokens=int(limit), text=_text(prompt))


def _answer(line: dict[str, Any]) -> SimRequest:
    """A finished answer; one that was cut at its limit ends there."""
    prompt = line["prompt"]
    return SimRequest(
        int(line.get("prompt_tokens") or _prompt_tokens(prompt)),
        int(line["output_tokens"]),
        max_tokens=int(line.get("max_tokens") or 0),
        text=_text(prompt),
    )


def _array(items: list[Any]) -> Iterable[SimRequest]:
    if items and isinstance(items[0], dict) and "conversations" in items[0]:
        return _each(items, _conversation, 'ShareGPT, {"conversations": ..}')
    return _each(items, _fixed_length, '[{"prompt": .., "out": n}]')


def _fixed_length(item: dict[str, Any]) -> SimRequest:
    """Exactly `out` tokens, which the scheduler knows."""
    out = int(item["out"])
    return SimRequest(_prompt_tokens(item["prompt"]), out, max_tokens=out, text=_text(item["prompt"]))


def _conversation(item: dict[str, Any]) -> SimRequest | None:
    """ShareGPT: the first question and its answer; None if there are not both."""
    turns = item["conversations"]
    if len(turns) < 2 or not turns[0]["value"] or not turns[1]["value"]:
        return None
    question, answer = turns[0]["value"], turns[1]["value"]
    return SimRequest(_prompt_tokens(question), _prompt_tokens(answer), text=question)


def _prompt_tokens(prompt: Any) -> int:
    """Token ids count; texts are estimated by their characters."""
    if isinstance(prompt, str):
        return max(1, -(-len(prompt) // CHARACTERS_PER_TOKEN))
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    return sum(_prompt_tokens(_content(part)) for part in prompt)


def _text(prompt: Any) -> Prompt | None:
    """Text or conversation; None of token ids, which say nothing without their tokenizer."""
    if isinstance(prompt, str):
        return prompt
    turns = [turn for turn in prompt if isinstance(turn, dict) and isinstance(turn.get("content"), str)]
    return tuple(ChatTurn(str(turn.get("role", "user")), turn["content"]) for turn in turns) or None


def _content(part: Any) -> Any:
    if isinstance(part, dict):
        content = part.get("content", part.get("text", ""))
        return content if content else " "
    return part
