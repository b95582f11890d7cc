"""The flags that describe a local cluster, shared by every command that can start one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tidepipe.cli.numbers import number
from tidepipe_common.settings.cluster import ClusterConfig, default_text
from tidepipe_common.settings.definition import Setting, settings_of

_PANEL = "Local cluster"


def _option(setting: Setting) -> Any:
    # Only numbers are read here: the configuration checks flags and files alike.
    kind = list[str] if setting.repeatable else str if setting.kind is Path else setting.kind
    return Annotated[
        kind | None,
        typer.Option(
            setting.flag,
            help=_help(setting),
            rich_help_panel=_PANEL,
            metavar=None if setting.kind is bool else setting.metavar,
            show_default=False,
            parser=None if setting.numbers is None else number(setting.numbers),
        ),
    ]


def _help(setting: Setting) -> str:
    text = setting.help
    if setting.choices:
        text = f"{text} One of {', '.join(setting.choices)}."
    default = default_text(setting.name)
    return f"{text} Default: {default}." if default else text


def _joined(value: Any) -> Any:
    """Of a flag that may be given several times; None if it was not."""
    return (",".join(value) or None) if isinstance(value, list) else value


CLUSTER_OPTIONS: dict[str, Any] = {
    **{name: _option(setting) for name, setting in settings_of(ClusterConfig).items()},
    "config": Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="TOML file with any of these settings; flags win.",
            rich_help_panel=_PANEL,
            metavar="FILE",
            show_default=False,
        ),
    ],
}


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all cluster flags; it gets those that were used as the mapping `cluster`."""
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "cluster"
    ]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in CLUSTER_OPTIONS.items()
    ]

    @functools.wraps(command)
    def wrapper(*arguments: Any, **values: Any) -> None:
        cluster = {name: _joined(values.pop(name)) for name in CLUSTER_OPTIONS if name in values}
        command(*arguments, **values, cluster={k: v for k, v in cluster.items() if v is not None})

    signature = inspect.Signature([*own, *shared])
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return wrapper
