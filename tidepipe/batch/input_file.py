"""Reads a batch file line by line, as bytes: whatever a line holds, the others are not affected."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from common.errors import ConfigError

MAX_LINE_BYTES = 16 * 2**20
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class InputLine:
    """number counts from 1, blank lines included. digest: of the whole line. too_long: data is cut."""

    number: int
    data: bytes
    digest: str
    too_long: bool = False


def read_lines(path: Path) -> Iterator[InputLine]:
    """All lines but blank ones."""
    with _open(path) as file:
        number = 0
        while chunk := file.readline(MAX_LINE_BYTES):
            number += 1
            digest = hashlib.blake2b(chunk, digest_size=_DIGEST_BYTES)
            rest = chunk
            while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE_BYTES)):
                digest.update(rest)
            data = chunk.strip()
            if data:
                too_long = len(chunk) == MAX_LINE_BYTES and not chunk.endswith(b"\n")
                yield InputLine(number, data, digest.hexdigest(), too_long)


def count_lines(path: Path) -> int:
    """How many lines are not blank. ConfigError if the file cannot be read."""
    return sum(1 for _ in read_lines(path))


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
