"""What a shell may hand over that is no text."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.text.text import is_text, on_one_line


def check_arguments(arguments: Sequence[str]) -> None:
    """InvalidRequestError names the first argument that is not UTF-8.

    Python turns such bytes into lone surrogates, which no file name of ours, request or message can hold.
    """
    for number, argument in enumerate(arguments):
        if is_text(argument):
            continue
        before = arguments[number - 1] if number else ""
        name = before if before.startswith("-") and len(before) > 1 else f"argument {number + 1}"
        shown = on_one_line(os.fsencode(argument).decode("utf-8", "backslashreplace"))[:100]
        raise InvalidRequestError(f"{on_one_line(name)[:100]} is not valid UTF-8: {shown}")
