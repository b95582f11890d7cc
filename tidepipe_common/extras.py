"""Extras: what `pip install 'tidepipe[EXTRA]'` adds to the client, and what to say where it lacks."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

from tidepipe_common.errors import ConfigError

SERVER = "server"
"""What the services need, and the commands that start them or do their work."""

_SHOWN = 3


class MissingExtraError(ConfigError):
    """Something that was asked for needs packages that are not installed."""


def missing(extra: str) -> tuple[str, ...]:
    """The packages of an extra that are not here.

    None, too, where files were only copied (images, say): then nothing says what was meant to be there.
    """
    try:
        declared = requires("tidepipe") or ()
    except PackageNotFoundError:
        return ()
    wanted = re.compile(rf"""([\w.-]+).*;.*\bextra == ["']{extra}["']""")
    names = (found.group(1) for line in declared if (found := wanted.match(line)))
    return tuple(name for name in names if not _installed(name))


def require(extra: str, who: str) -> None:
    """MissingExtraError says what `who` lacks, if packages of the extra are not here."""
    if lacking := missing(extra):
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        names = ", ".join(lacking[:_SHOWN])
        raise MissingExtraError(
            f"{who} needs the {extra}: pip install 'tidepipe[{extra}]' (not installed: {names}{more})"
        )


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
