"""The errors in an exception group.

`except*` is for catching only: what is raised inside of it, CPython 3.11.0 to 3.11.3 wrap into a group, which
nobody catches by its own type. So: collect the errors there, and raise after the block.
"""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def leaves(group: BaseExceptionGroup[E]) -> list[E]:
    """The errors in a group, those of groups in it included, in their order."""
    found: list[E] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
