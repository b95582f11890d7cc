"""Room on the disk that is kept for the day it is full: to delete something, SQLite has to write first."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

BYTES = 2 * 1024 * 1024
"""What SQLite writes to delete a file of the largest size, several times over."""


class Ballast:
    """A file of nothing. On a disk that is full already it is made as soon as there is room."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.take()

    def take(self) -> None:
        """Have it, if the disk has room."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(descriptor).st_size < BYTES:
                    os.posix_fallocate(descriptor, 0, BYTES)
            except OSError:
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)

    def give(self) -> None:
        """Its room is the disk's."""
        with contextlib.suppress(OSError):
            os.truncate(self._path, 0)
