"""The log files of a cluster's processes: for their owner's eyes, and never longer than so much.

A process writes to its file by a descriptor that it got at its start, so the file stays the one it is: what
it holds is copied away, and it begins again at nothing (logrotate's copytruncate). Lines that come in between
the two are lost; a log that fills the disk takes more with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import structlog

MAX_BYTES = 16 * 1024 * 1024
KEPT = 3
"""Older parts of a log, `NAME.log.1` the latest."""
LOOK_S = 5.0
_TAIL_BYTES = 64 * 1024

log = structlog.get_logger()


def open_log(path: Path) -> BinaryIO:
    """To append to; nobody else may read it: prompts can stand in what a process says when it dies."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "ab")


async def keep_short(folder: Path) -> None:
    """Rotate the logs in a folder whenever they are too long, until cancelled."""
    while True:
        await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(rotate_all, folder)


def rotate_all(folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Rotate each log that is longer than max_bytes."""
    for path in folder.glob("*.log"):
        try:
            if path.stat().st_size > max_bytes:
                rotate(path)
        except OSError as error:
            log.warning("a log cannot be rotated", file=str(path), reason=str(error))


def rotate(path: Path) -> None:
    """Its content becomes `.1`, that one `.2`, and so on; without room for that, it is thrown away."""
    for number in range(KEPT - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            _older(path, number).replace(_older(path, number + 1))
    try:
        with path.open("rb") as source, open_log(_older(path, 1)) as target:
            shutil.copyfileobj(source, target)
    finally:
        os.truncate(path, 0)


def tail(path: Path, lines: int) -> list[str]:
    """Its last lines; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
