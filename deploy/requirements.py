"""Prints the run-time dependencies of pyproject.toml, a line each: what the images install.

    python deploy/requirements.py [--without NAME ...]

The service image leaves out torch: only stage workers compute.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def requirements(without: frozenset[str]) -> list[str]:
    """The direct dependencies, less those named."""
    declared: list[str] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [line for line in declared if re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0] not in without]


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME")
    print("\n".join(requirements(frozenset(parser.parse_args().without))))


if __name__ == "__main__":
    main()
