"""The form of an answer: what a request asks for, in the way in which the served model writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tidepipe_common.dialects.calling import (
    Function,
    Thinking,
    allowed,
    behind_thought,
    required,
    without_notes,
)
from tidepipe_common.dialects.dialect import Dialect
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_TOOL_NAME_CHARACTERS
from tidepipe_common.structures.forms import written
from tidepipe_common.text.json_text import parse_json
from tidepipe_common.text.text import quoted
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.structure import Form, Structure
from tidepipe_common.types.tool_text import read_tools

_NAME = re.compile(rf"[\w.-]{{1,{MAX_TOOL_NAME_CHARACTERS}}}")


def answer_form(request: GenerationRequest, dialect: Dialect, thinking: Thinking) -> Structure | None:
    """What the answer is held to; None: nothing. InvalidRequestError names what makes no sense."""
    wished, choice = request.sampling.structure, request.tool_choice
    forced = choice.mode == "required"
    chosen = forced or bool(choice.names) or not choice.parallel
    functions = []
    # Most need not be read here: the chat template has, which is where they are checked.
    if request.callable and (chosen or any('"strict"' in tool for tool in request.tools)):
        functions = [_function(tool["function"]) for tool in read_tools(request.tools)]
    if not chosen and not any(strict for _, strict in functions):
        if wished is None or thinking == "no":
            return wished
        return _composed(behind_thought(dialect, thinking, _form_of(wished)), wished.field)
    if dialect.form is None:
        raise InvalidRequestError(
            "calls cannot be forced: none are read from this model's answers (--tool-parser off)",
            "tool_choice",
        )
    if request.sampling.stop and not forced:
        raise InvalidRequestError(
            "stop strings could cut a call short that must be whole (strict, parallel_tool_calls false, "
            "allowed_tools); leave them out",
            "stop",
        )
    _check_names([function.name for function, _ in functions], choice.names)
    functions = [one for one in functions if not choice.names or one[0].name in choice.names]
    bound = [Function(one.name, one.parameters if strict or forced else {}) for one, strict in functions]
    if forced:
        form = required(dialect, bound, choice.parallel, thinking)
    else:
        otherwise = None if wished is None else _form_of(wished)
        form = allowed(dialect, bound, choice.parallel, thinking, otherwise)
    return _composed(form, "tools")


def _form_of(structure: Structure) -> Form:
    if structure.kind == "regex":
        return {"regex": structure.text}
    return {"schema": parse_json(structure.text, "response_format")}


def _composed(form: Form, field: str) -> Structure:
    structure = Structure("composed", f'{{"form":{written(form)}}}', field)
    structure.check()
    return structure


def _check_names(names: Sequence[str], wanted: Sequence[str]) -> None:
    known = set(names)
    if missing := [name for name in wanted if name not in known]:
        raise InvalidRequestError(
            f"tool_choice names {quoted(missing[0])}, which is none of the tools", "tool_choice"
        )
    if odd := [name for name in names if not _NAME.fullmatch(name)]:
        raise InvalidRequestError(
            "a tool whose calls are held to a form must have a name of letters, digits, '_', '-' and '.', at "
            f"most {MAX_TOOL_NAME_CHARACTERS}; not {quoted(odd[0])}",
            "tools",
        )


def _function(function: Mapping[str, Any]) -> tuple[Function, bool]:
    name, parameters = function["name"], function.get("parameters") or {}
    if parameters.get("type", "object") != "object":
        raise InvalidRequestError(
            f"the parameters of {quoted(name)} must be an object, got type {quoted(parameters['type'])}",
            "tools",
        )
    return Function(name, without_notes(parameters)), function.get("strict") is True
