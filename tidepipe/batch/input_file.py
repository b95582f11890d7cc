"""The reader of a batch file, line by line, as bytes: whatever a line holds, the others are not affected."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tidepipe_common.errors import ConfigError
from tidepipe_common.regular_files import open_file

MAX_LINE_BYTES = 16 * 2**20
_DIGEST_BYTES = 16
_NO_LINES = {
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed by bzip2",
    b"\xfd7zX": "compressed by xz",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "Parquet",
}
"""Beginnings of files that people take for a batch's input."""


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
    """How many lines are not blank. ConfigError if the file cannot be read, or all are."""
    total = sum(1 for _ in read_lines(path))
    if not total:
        raise ConfigError(f"{path} has no requests; give a file with one JSON object per line")
    return total


def _open(path: Path) -> BinaryIO:
    try:
        file = open_file(path)
        begin = file.read(4)
        file.seek(0)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    for mark, kind in _NO_LINES.items():
        if begin.startswith(mark):
            file.close()
            raise ConfigError(
                f"cannot read {path}: it is {kind}, not lines of JSON in UTF-8; convert it first"
            )
    return file
