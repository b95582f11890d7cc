"""The credentials of this process.

A process has one identity, whatever channels it opens and ports it has, so it is kept here instead of being
passed through every constructor between a command line and a socket; what takes none given uses this one.
"""

from __future__ import annotations

from tidepipe_common.security.credentials import Credentials, from_environment

_own: Credentials | None = None


def use(credentials: Credentials) -> None:
    """Say once, at start, who this process is."""
    global _own
    _own = credentials


def own() -> Credentials:
    """Who this process is: what `use` said, else what the environment says."""
    return from_environment() if _own is None else _own
