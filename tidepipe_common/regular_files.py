"""Reading of files that people name: regular ones only, by one rule for every command and service.

A pipe would be waited for until somebody writes to it, without a word and perhaps for ever; a device may
never end; and what is read twice is there once. So these are refused before they are opened.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

_NO_REGULAR_FILE = "it is no regular file"


def open_file(path: Path, *, buffering: int = -1) -> BinaryIO:
    """The file at `path`, open to be read. OSError, whose `strerror` says why, if it cannot be or is none.

    buffering: as for `open`.
    """
    # Not to wait where another took its place in between; regular files know no waiting.
    _refuse_others(path.stat(), path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _refuse_others(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb", buffering=buffering)
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path) -> bytes:
    """All of it. OSError as `open_file`."""
    with open_file(path) as file:
        return file.read()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """All of it, lines ended by a line feed. OSError as `open_file`; UnicodeDecodeError."""
    with open_text(path, encoding) as file:
        return file.read()


def open_text(path: Path, encoding: str = "utf-8") -> io.TextIOWrapper:
    """The file, open to be read as text. OSError as `open_file`."""
    return io.TextIOWrapper(open_file(path), encoding=encoding)


def why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    """What reading a file failed for, to be put behind its name."""
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not text in UTF-8"


def _refuse_others(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, _NO_REGULAR_FILE, str(path))
