"""The names by which clients ask for a model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePath

MAX_NAMES = 16
MAX_NAME_LETTERS = 256
"""Of a name that instances, and whoever starts them, may give a model."""


def served_names(text: str) -> tuple[str, ...]:
    """What `--served-model-name` says. ValueError says what is wrong."""
    names = tuple(part.strip() for part in text.split(","))
    check_names(names)
    return names


def check_names(names: Collection[str]) -> None:
    """ValueError if these cannot be names of one model."""
    if len(names) > MAX_NAMES:
        raise ValueError(f"must be {MAX_NAMES} names at most, got {len(names)}")
    for name in names:
        if not name or not name.isprintable() or len(name) > MAX_NAME_LETTERS:
            raise ValueError(f"must be printable names of 1 to {MAX_NAME_LETTERS} characters each")
    if len(set(names)) < len(names):
        raise ValueError("must not name one twice")


def usual_name(model: str) -> str:
    """Of a model that was given none: the folder's or file's, or the model as it was called."""
    if not (path := Path(model).expanduser()).exists():
        return called(model)
    return _of_path(path.resolve())


def called(model: str) -> str:
    """The same of a model of another machine, whose files cannot be looked at here."""
    return _of_path(PurePath(model)) if model.startswith(("/", "./", "../", "~")) else model


def _of_path(path: PurePath) -> str:
    return path.stem if path.suffix == ".gguf" else path.name
