"""The command line and the environment of a service: settings from them, and arguments from settings."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from tidepipe_common.settings.definition import Setting, refusal, settings_of
from tidepipe_common.settings.service import ServiceSettings

Settings = TypeVar("Settings", bound=ServiceSettings)


def variable_of(model: type[ServiceSettings], setting: Setting) -> str:
    """The environment variable that a flag wins over."""
    return setting.environment or f"TIDEPIPE_{model.service}_{setting.name}".replace(".", "_").upper()


def make_parser(model: type[ServiceSettings]) -> argparse.ArgumentParser:
    """The parser of `python -m SERVICE`. It takes texts as they are: the model reads and checks them."""
    parser = argparse.ArgumentParser(
        f"python -m {model.service}",
        description=model.__doc__,
        epilog=f"Each flag has an environment variable, such as {variable_of(model, _first(model))}.",
        argument_default=argparse.SUPPRESS,
    )
    for setting in settings_of(model).values():
        help_text = _help(model, setting).replace("%", "%%")
        if setting.kind is bool:
            parser.add_argument(setting.flag, action="store_true", help=help_text)
            continue
        parser.add_argument(
            setting.flag,
            action="append" if setting.repeatable else "store",
            metavar=f"{{{','.join(setting.choices)}}}" if setting.choices else setting.metavar,
            help=help_text,
        )
    return parser


def parse_settings(
    model: type[Settings],
    arguments: Sequence[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings that flags (of this process, unless given) and, for others, the environment name.

    ConfigError names the flag or variable that is wrong. Flags that do not exist end the process with code 2.
    """
    given = vars(make_parser(model).parse_args(arguments))
    values: dict[str, Any] = {}
    called: dict[str, str] = {}
    for name, setting in settings_of(model).items():
        variable = variable_of(model, setting)
        called[name] = f"{setting.flag} (or {variable})"
        if name in given:
            value = given[name]
            text = ",".join(value) if isinstance(value, list) else value
            called[name] = setting.flag
            values[name] = setting.read(text) if isinstance(text, str) else text
        elif environment.get(variable):
            called[name] = variable
            values[name] = setting.read(environment[variable])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise refusal(error, model, called) from error


def arguments_of(settings: ServiceSettings) -> list[str]:
    """The command line that `parse_settings` makes the same settings of: all that was chosen."""
    arguments: list[str] = []
    for name, setting in settings_of(type(settings)).items():
        value = getattr(settings, name)
        if name not in settings.model_fields_set or value is None or value is False:
            continue
        if str(value).startswith("-"):
            # Else it would be read as an option.
            arguments.append(f"{setting.flag}={value}")
            continue
        arguments.append(setting.flag)
        if value is not True:
            arguments.append(str(value))
    return arguments


def _first(model: type[ServiceSettings]) -> Setting:
    return next(iter(settings_of(model).values()))


def _help(model: type[ServiceSettings], setting: Setting) -> str:
    if setting.required:
        return f"{setting.help} Required."
    default = setting.default_text
    return f"{setting.help} Default: {default}." if default else setting.help
