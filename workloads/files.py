"""Readers of workload files. The format is told by the content, not by the name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tidepipe_common.errors import ConfigError
from tidepipe_common.types.request import ChatTurn, Prompt
from workloads.mixes import SYNTHETIC, SimRequest, Workload, sharegpt_like

CHARACTERS_PER_TOKEN = 4
"""For texts without a tokenizer at hand; English text has about so many."""
DEFAULT_MAX_TOKENS = 256
_SYNTHETIC_REQUESTS = 5000


def open_workload(source: str, requests: int | None, seed: int) -> Workload:
    """A file, or `sharegpt-like` for the synthetic one.

    Azure CSV (TIMESTAMP,ContextTokens,GeneratedTokens), ShareGPT JSON ([{"conversations": ..}]), Mooncake
    JSONL (timestamp, input_length, output_length), OpenAI batch JSONL, answers as JSONL ({"prompt": ..,
    "output_tokens": n}, what `tidepipe predictor train` reads), or [{"prompt": .., "out": n}].
    """
    path = Path(source)
    if source == SYNTHETIC and not path.exists():
        return sharegpt_like(requests or _SYNTHETIC_REQUESTS, seed)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the workload {source}: {error}") from error
    try:
        found = tuple(_parse(text))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{source}: not a workload that is known here ({error!r})") from error
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
        readers = {"input_length": _mooncake, "output_tokens": _answer}
        reader = next((found for key, found in readers.items() if key in lines[0]), _openai_batch)
        return map(reader, lines)
    return _azure(text)


def _azure(text: str) -> Iterable[SimRequest]:
    table = csv.DictReader(io.StringIO(text))
    if "ContextTokens" not in (table.fieldnames or ()):
        raise ValueError("neither JSON nor a CSV with ContextTokens")
    for row in table:
        # Seven digits of fraction: more than datetime takes.
        stamp = datetime.fromisoformat(row["TIMESTAMP"][:26].strip()).timestamp()
        yield SimRequest(int(row["ContextTokens"]), int(row["GeneratedTokens"]), arrival_s=stamp)


def _mooncake(line: dict[str, Any]) -> SimRequest:
    return SimRequest(
        int(line["input_length"]), int(line["output_length"]), arrival_s=float(line["timestamp"]) / 1000
    )


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


def _array(items: list[dict[str, Any]]) -> Iterable[SimRequest]:
    reader: Callable[[dict[str, Any]], SimRequest | None] = (
        _conversation if "conversations" in items[0] else _fixed_length
    )
    return (request for request in map(reader, items) if request is not None)


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
