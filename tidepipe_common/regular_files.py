"""Files that people name: regular ones only, by one rule for every command and service.

A pipe would be waited for until somebody writes to it, without a word and perhaps for ever; a device may
never end; and what is read twice is there once. So these are refused before they are opened. What is to be
written in the end is tried before the work begins whose result it holds.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from tidepipe_common.errors import ConfigError

_NO_REGULAR_FILE = "it is no regular file"
_LEADS_NOWHERE = "it is a link that leads nowhere"


def open_file(path: Path, *, buffering: int = -1) -> BinaryIO:
    """The file at `path`, open to be read. OSError, whose `strerror` says why, if it cannot be or is none.

    buffering: as for `open`.
    """
    # Not to wait where another took its place in between; regular files know no waiting.
    refuse_others(path.stat(), path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        refuse_others(os.fstat(descriptor), path)
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


def check_writable(path: Path | None, *, folder: bool = False) -> None:
    """ConfigError if it cannot be written, as far as that can be known beforehand; None: nothing is to be.

    folder: it is to hold files, and is made with those around it; else it is a file, likewise.
    """
    if path is None:
        return
    try:
        if path.exists() and not path.is_dir():
            if folder:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            if stat.S_ISREG(path.stat().st_mode):  # others are their user's own business
                os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            return
        if path.is_dir() and not folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        around = path.absolute()
        if around.is_symlink() and not folder:
            # Written through it, into a folder that must be there; a circle of links remains one.
            named = Path(os.path.realpath(around))
            if named.parent.is_dir() and not named.is_symlink():
                around = named.parent
        while not around.exists():
            if around.is_symlink():
                raise FileNotFoundError(errno.ENOENT, _LEADS_NOWHERE, str(path))
            around = around.parent
        # Tried: rights alone do not tell of file systems that take nothing.
        with tempfile.TemporaryFile(dir=around):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; name another place") from error


def refuse_others(found: os.stat_result, path: Path) -> None:
    """OSError for what is no regular file."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, _NO_REGULAR_FILE, str(path))
