"""The version of TidePipe that runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def tidepipe_version() -> str:
    """As the installed package says; `unknown` for files that were only copied."""
    try:
        return version("tidepipe")
    except PackageNotFoundError:
        return "unknown"
