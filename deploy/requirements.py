"""Prints what a server needs by pyproject.toml, a line each: what `make lock` and `make setup` begin with.

    python deploy/requirements.py [--without NAME ... | --only NAME ... | --beyond LOCK LOCK]

The service image leaves out torch: only stage workers compute. --beyond: the entries of the second lock that
the first one lacks, which is what a worker's image adds to that of a service.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def requirements(wanted: Callable[[str], bool]) -> list[str]:
    """The direct dependencies, the client's and the server's, whose names are wanted."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *_extra("server", project["optional-dependencies"])]
    return [line for line in declared if wanted(re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0])]


def _extra(name: str, extras: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What an extra names, with what the extras that it builds on do."""
    for line in extras[name]:
        if (own := re.fullmatch(r"tidepipe\[([\w-]+)\]", line)) is not None:
            yield from _extra(own[1], extras)
        else:
            yield line


def beyond(lock: str, other: str) -> str:
    """The entries, with their hashes, of the other lock that are not in this one."""
    known = frozenset(_entries(lock))
    return "".join(entry for entry in _entries(other) if entry not in known)


def _entries(lock: str) -> list[str]:
    """Each a line that names a package and its version, and those with the hashes."""
    return re.split(r"(?m)^(?=[\w.-]+==)", lock)[1:]


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--beyond", nargs=2, type=Path, metavar="LOCK")
    options = parser.parse_args()
    if options.beyond:
        print(beyond(*(lock.read_text(encoding="utf-8") for lock in options.beyond)), end="")
        return
    only, without = frozenset(options.only), frozenset(options.without)
    print("\n".join(requirements(lambda name: name in only if only else name not in without)))


if __name__ == "__main__":
    main()
