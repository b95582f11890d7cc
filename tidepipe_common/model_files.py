"""The JSON files of a model's folder: the one place where they are read, whoever needs what they say.

People edit them by hand and cut them short in copying. What is wrong with one is said in its own name here,
before a library stumbles over it in words that are about something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidepipe_common.errors import InvalidRequestError, ModelError
from tidepipe_common.regular_files import read_bytes
from tidepipe_common.text.json_text import NotJsonError, check_json_text, decode_json

LARGEST_JSON = 16 << 20
"""Bytes of a configuration; of an index of weights, too, which names each tensor of the largest models."""
_KINDS: Mapping[type, str] = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
_MARK = b"\xef\xbb\xbf"


def is_there(file: Path) -> bool:
    """Whether a folder has this file, which it may lack; ModelError if what is there is no file."""
    if file.is_file():
        return True
    if file.is_symlink() and not file.exists():
        raise ModelError(f"{file}: a link to nothing; fetch the model again")
    if file.exists():
        raise ModelError(f"{file}: not a file")
    return False


def read_json_object(file: Path, largest: int = LARGEST_JSON) -> Mapping[str, Any]:
    """The object in a file; ModelError, which names the file, if there is none."""
    return json_object(_read(file, largest), str(file))


def read_text(file: Path, largest: int = LARGEST_JSON) -> str:
    """The text in a file; ModelError, which names the file, if there is none."""
    try:
        return _read(file, largest).decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{file}: is not UTF-8 (byte {error.start}); save it as that") from error


def _read(file: Path, largest: int) -> bytes:
    try:
        size = file.stat().st_size
        if size > largest:
            raise ModelError(f"{file}: too large, {size} bytes of {largest} at most")
        return read_bytes(file)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error


def json_object(raw: bytes, source: str) -> Mapping[str, Any]:
    """The object that the bytes are; ModelError, which begins with `source`, if they are none.

    Bounded by its bytes only: an index of weights and a vocabulary have more entries than any request.
    """
    if raw.startswith(_MARK):
        raise ModelError(f"{source}: begins with a byte order mark; save it as UTF-8 without one")
    if not raw.strip():
        raise ModelError(f"{source}: is empty")
    try:
        value = decode_json(raw, counted=False)
        check_json_text(raw, value, "it")
    except (NotJsonError, InvalidRequestError) as error:
        raise ModelError(f"{source}: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{source}: must be a JSON object, not {_KINDS.get(type(value), 'a number')}")
    return value
