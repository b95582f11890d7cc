"""The definition of one setting, as parsers, help and reference need it, read from the field of a model.

A field's type, range and default are pydantic's; `setting` adds what people read: help, the placeholder of
its value, and what leaving it out means.
"""

from __future__ import annotations

import difflib
import functools
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from tidepipe_common.errors import ConfigError
from tidepipe_common.numerals import NumberRange
from tidepipe_common.text.text import quoted

TRUE_WORDS, FALSE_WORDS = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
"""What an environment variable says of a setting that is on or off."""


def setting(
    text: str,
    *,
    metavar: str = "",
    otherwise: str = "",
    environment: str = "",
    repeatable: bool = False,
    **limits: Any,
) -> Any:
    """A pydantic field with what people read about it.

    Args:
        text: help, a sentence.
        metavar: placeholder of its value.
        otherwise: what happens without it, where its default does not say.
        environment: its variable, if it is not TIDEPIPE_SERVICE_NAME.
        repeatable: the flag may be given several times; its values are joined by commas.
        limits: of pydantic's Field.
    """
    shown: dict[str, Any] = {
        "metavar": metavar,
        "otherwise": otherwise,
        "environment": environment,
        "repeatable": repeatable,
    }
    return Field(description=text, json_schema_extra=shown, **limits)


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a model of settings.

    kind: int, float, bool, str or Path. choices: the texts that it can be; empty: any. numbers: the range of
    a number. optional: may be None. default: None if it is required or optional.
    """

    name: str
    kind: type[Any]
    choices: tuple[str, ...]
    numbers: NumberRange | None
    optional: bool
    required: bool
    default: Any
    help: str
    metavar: str
    otherwise: str
    environment: str
    repeatable: bool

    @property
    def flag(self) -> str:
        """Of the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def default_text(self) -> str:
        """What is used without it; empty if nothing is to be said about that."""
        if self.otherwise or self.default is None or self.default is False or self.default == "":
            return self.otherwise
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def read(self, text: str) -> Any:
        """The value that a text stands for; if for none the text itself, which the model refuses."""
        if self.numbers is not None:
            number = self.numbers.parse(text)
            return text if number is None else number
        if self.kind is bool and text.lower() in TRUE_WORDS + FALSE_WORDS:
            return text.lower() in TRUE_WORDS
        return text


@functools.cache
def settings_of(model: type[BaseModel]) -> Mapping[str, Setting]:
    """The definitions of all fields, in their order; those that it shares with all services come last."""
    fields = model.model_fields
    names = sorted(fields, key=lambda name: name not in model.__annotations__)
    return MappingProxyType({name: _setting(name, fields[name]) for name in names})


def _setting(name: str, field: FieldInfo) -> Setting:
    optional, kind, metadata = False, field.annotation, list(field.metadata)
    help_text = field.description or ""
    shown: Any = field.json_schema_extra or {}
    while get_origin(kind) in (Union, types.UnionType, Annotated):
        if get_origin(kind) is Annotated:
            kind, *further = get_args(kind)
            for one in further:
                if isinstance(one, FieldInfo):
                    metadata += one.metadata
                    help_text = help_text or one.description or ""
                    shown = shown or one.json_schema_extra or {}
                else:
                    metadata.append(one)
        else:
            optional = True
            (kind,) = (one for one in get_args(kind) if one is not types.NoneType)
    choices: tuple[str, ...] = ()
    if get_origin(kind) is Literal:
        kind, choices = str, get_args(kind)
    assert isinstance(kind, type) and isinstance(shown, dict), name
    return Setting(
        name=name,
        kind=kind,
        choices=choices,
        numbers=_range(kind is int, metadata) if kind in (int, float) else None,
        optional=optional,
        required=field.is_required(),
        default=None if field.is_required() else field.default,
        help=help_text,
        metavar=str(shown.get("metavar") or _METAVARS.get(kind, "")),
        otherwise=str(shown.get("otherwise", "")),
        environment=str(shown.get("environment", "")),
        repeatable=bool(shown.get("repeatable", False)),
    )


_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "FILE"}


def _range(whole: bool, metadata: list[Any]) -> NumberRange:
    least: Any = None
    most: Any = None
    above = below = False
    for one in metadata:
        match one:
            case Ge():
                least = one.ge
            case Gt():
                least, above = one.gt, True
            case Le():
                most = one.le
            case Lt():
                most, below = one.lt, True
    return NumberRange.within(whole, least, most, above=above, below=below)


def _called(message: str, given_as: Mapping[str, str]) -> str:
    """A message that may begin with a field's name, and have others in its midst that cannot be words."""

    def call(match: re.Match[str]) -> str:
        name = match[0]
        return given_as.get(name, name) if match.start() == 0 or "_" in name else name

    return re.sub(r"(?<![\w/.'-])[a-z_]+(?![\w/-])", call, message)


def refusal(
    error: ValidationError, model: type[BaseModel], given_as: Mapping[str, str] = MappingProxyType({})
) -> ConfigError:
    """The first thing that is wrong, in one sentence that is the same wherever the value stood.

    given_as: what the fields are called there; for others their own names.
    """
    problem = error.errors(include_url=False, include_context=False)[0]
    if not problem["loc"]:
        return ConfigError(_called(str(problem["msg"]).removeprefix("Value error, "), given_as))
    field = str(problem["loc"][0])
    definition = settings_of(model).get(field)
    name = given_as.get(field, field)
    if definition is None:
        near = difflib.get_close_matches(name, model.model_fields, 1)
        known = f"did you mean {near[0]}?" if near else f"known: {', '.join(model.model_fields)}"
        return ConfigError(f"unknown setting '{name}'; {known}")
    if problem["type"] == "missing":
        return ConfigError(f"{name} must be given")
    given = problem["input"]
    if definition.numbers is not None:
        return ConfigError(f"{name}: {definition.numbers.refusal(given)}")
    message = str(problem["msg"]).removeprefix("Value error, ")
    if definition.kind is bool:
        message = "must be on or off"
    if given == "" and str(problem["type"]).endswith("too_short"):
        message = "must not be empty"
    return ConfigError(f"{name}: {message}, got {quoted(given)}")
