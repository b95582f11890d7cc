"""Tools told to a model whose chat template has no place for them: in the system message, in our words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tidepipe_common.dialects.dialect import CallForm

_INTRODUCTION = "You may call functions to answer. These are the functions, as JSON:"
_HOW = "To call a function, write this and nothing else, with its name and its arguments:"


def tools_in_words(
    turns: Sequence[dict[str, Any]], tools: Sequence[str], form: CallForm, *, system: bool = True
) -> list[dict[str, Any]]:
    """The conversation with the tools in it, and with calls and their results as text.

    form: how the model is to write calls, and how they are read. system: False: the template has no system
    messages, so that the first other message begins with the tools.
    """
    calling = form.written([("NAME", '{"ARGUMENT": VALUE}')])
    told = "\n".join([_INTRODUCTION, *tools, "", _HOW, calling])
    made: list[dict[str, Any]] = []
    for turn in turns:
        now = _in_words(turn, form)
        if made and turn["role"] == "tool" and made[-1]["role"] == now["role"]:
            made[-1]["content"] += f"\n{now['content']}"  # many templates want users and assistants in turn
        else:
            made.append(now)
    if system and made[0]["role"] != "system":
        return [{"role": "system", "content": told}, *made]
    pieces = [made[0]["content"], told] if system else [told, made[0]["content"]]
    return [{**made[0], "content": "\n\n".join(filter(None, pieces))}, *made[1:]]


def _in_words(turn: dict[str, Any], form: CallForm) -> dict[str, Any]:
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    calls = turn.get("tool_calls")
    if not calls:
        return turn
    functions = [call["function"] for call in calls]
    text = form.written(
        [(one["name"], json.dumps(one.get("arguments", {}), ensure_ascii=False)) for one in functions]
    )
    return {"role": turn["role"], "content": "\n".join(filter(None, [turn["content"], text]))}
