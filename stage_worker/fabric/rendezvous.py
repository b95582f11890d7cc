"""Where two stages of one host find each other, and how a controller sees that they could."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

from tidepipe_common.errors import ConfigError
from tidepipe_common.security.trusted_files import UntrustedError, private_folder

STALE_S = 86_400.0
"""What a worker that was killed left behind goes when another one starts later than this."""


def meeting_folder() -> Path:
    """This user's folder for meetings, readable by nobody else; ConfigError if it is not ours."""
    folder = Path(tempfile.gettempdir()) / f"tidepipe-fabric-{os.getuid()}"
    try:
        if folder.is_symlink():
            raise UntrustedError(f"{folder} is a link")
        return private_folder(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot use {folder}, where stages meet ({reason}); remove it") from error


def meeting_place(name: str) -> Path:
    """The file for a meeting of that name, which a controller chose: any text."""
    return meeting_folder() / hashlib.sha256(name.encode()).hexdigest()


def fabric_id(backend: str) -> str:
    """Equal for workers that can meet: same backend, same running host, same folder and loopback device
    (those of containers differ)."""
    folder = meeting_folder()
    _tidy(folder)
    place = folder.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    network = Path("/proc/self/ns/net").stat().st_ino
    return f"{backend}:{boot}:{network}:{place.st_dev}:{place.st_ino}"


def _tidy(folder: Path) -> None:
    for file in folder.iterdir():
        try:
            if time.time() - file.stat().st_mtime > STALE_S:
                file.unlink()
        except FileNotFoundError:  # others tidy up as well
            continue
