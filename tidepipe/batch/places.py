"""Where a batch reads and writes: what cannot work in the end is refused before anything starts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tidepipe.batch.progress_file import TEMPORARY_EXTRA, progress_path
from tidepipe_common.errors import ConfigError

_LONGEST_NAME = 255


def check_places(source: Path, output: Path) -> None:
    """ConfigError if `source` cannot be read twice, or `output` cannot be written in one stroke."""
    if _kind(source) not in (None, stat.S_IFREG):
        # It is read once to count the requests, and once to answer them.
        raise ConfigError(f"cannot read {source}: it is no regular file; write the requests to one first")
    if output.name in ("", ".."):
        raise ConfigError(f"the output {output} is a folder; name a file")
    if len(os.fsencode(output.name)) + TEMPORARY_EXTRA > _LONGEST_NAME:
        raise ConfigError(
            f"the output's name is too long; {_LONGEST_NAME - TEMPORARY_EXTRA} bytes are possible"
        )
    match _kind(output) if not _is_device(output) else stat.S_IFCHR:
        case None | stat.S_IFREG:
            pass
        case stat.S_IFDIR:
            raise ConfigError(f"the output {output} is a folder; name a file in it")
        case _:
            raise ConfigError(
                f"the output {output} is no regular file; answers are written to one in one stroke, name one"
            )
    if output.exists() and not output.stat().st_mode & 0o222:
        raise ConfigError(
            f"the output {output} is there, and write-protected; name another one, or remove it"
        )
    progress = progress_path(output)
    for place, what in ((output, "output"), (progress, "file of the batch's progress")):
        if place.exists() and source.exists() and place.samefile(source):
            raise ConfigError(f"the {what}, {place}, is the input; name another output")
    if _kind(progress) not in (None, stat.S_IFREG):
        raise ConfigError(f"{progress} is in the way: the batch's progress is kept there; move it away")
    if not output.parent.is_dir():
        raise ConfigError(f"cannot write {output}: there is no folder {output.parent}")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {output}: the folder {output.parent} is not writable")


def _is_device(path: Path) -> bool:
    """True for /dev/stdout and its like, whatever they lead to: the name itself would be replaced."""
    return path.absolute().parts[1] in ("dev", "proc") and "shm" not in path.absolute().parts[:3]


def _kind(path: Path) -> int | None:
    """The type of what is there, links followed; None for nothing."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror or error}") from error
