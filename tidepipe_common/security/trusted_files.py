"""Files that nobody else could have written: what is loaded as code, and folders that hold prompts.

As OpenSSH looks at its keys: the owner and mode of a file say nothing while somebody else may replace a
folder above it.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(OSError):
    """Another user could have written a file; says how."""


def trusted(path: Path) -> Path:
    """The path without links, to be opened as it is.

    UntrustedError if another user than root could have written what is there.
    """
    real = path.resolve(strict=True)
    for part in (real, *real.parents):
        if reason := _why_not(part.lstat(), folder_above=part != real):
            raise UntrustedError(f"{part} {reason}: another user could have written {real}")
    return real


def private_folder(path: Path) -> Path:
    """The folder, made if need be, that others neither read nor write. UntrustedError if it is not ours.

    One of ours that others could write is closed to them; what they put there by then is no more trusted for
    it: ask `trusted` of each file.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    real = path.resolve(strict=True)
    found = real.stat()
    if found.st_uid != os.getuid():
        raise UntrustedError(f"{real} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        real.chmod(0o700)
    return trusted(real)


def _why_not(found: os.stat_result, *, folder_above: bool) -> str:
    if found.st_uid not in (0, os.getuid()):
        return f"belongs to user {found.st_uid}"
    written_by = found.st_mode & _BY_OTHERS
    if not written_by or (written_by == stat.S_IWGRP and _only_ours(found.st_gid)):
        return ""
    if folder_above and found.st_mode & stat.S_ISVTX:
        return ""  # such as /tmp: who may write there may not replace what is somebody else's
    return "can be written by others"


def _only_ours(group: int) -> bool:
    """True for root's group, and for a user's private group, as many systems have it."""
    if group == 0:
        return True
    try:
        user, entry = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return user.pw_gid == group and entry.gr_name == user.pw_name and set(entry.gr_mem) <= {user.pw_name}
