"""The flags with which every command reaches a secured cluster."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tidepipe_common.security.credentials import API_KEY, CA, CERT, KEY

_PANEL = "Secured clusters"


def _option(kind: Any, flag: str, help_text: str, metavar: str, variable: str) -> Any:
    return Annotated[
        kind | None,
        typer.Option(flag, help=f"{help_text} [{variable}]", rich_help_panel=_PANEL, metavar=metavar),
    ]


_OPTIONS: dict[str, tuple[str, Any]] = {
    "api_key": (API_KEY, _option(str, "--api-key", "As `tidepipe keys add` printed it.", "KEY", API_KEY)),
    "tls_ca": (CA, _option(Path, "--tls-ca", "Whose certificates to trust, PEM.", "FILE", CA)),
    "tls_cert": (CERT, _option(Path, "--tls-cert", "Own certificate, PEM.", "FILE", CERT)),
    "tls_key": (KEY, _option(Path, "--tls-key", "Its key, PEM.", "FILE", KEY)),
}


def client_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags. They go to where clients look anyway, the environment of this process."""
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in inspect.signature(command).parameters.items()
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, (_, annotation) in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def wrapper(*arguments: Any, **values: Any) -> None:
        for name, (variable, _) in _OPTIONS.items():
            if (value := values.pop(name, None)) is not None:
                os.environ[variable] = str(value)
        command(*arguments, **values)

    signature = inspect.Signature([*own, *added])
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return wrapper
