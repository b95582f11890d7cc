"""How model families write thoughts and calls of tools into their text: text in, typed parts out. Pure.

`dialect_for` tells a model's dialect by its chat template, `dialect_named` takes it by its name. A dialect
makes readers, one for each answer (`Dialect.reader`), which turn text into `parts`; it says which special
tokens they must see (`kept_tokens`), and how calls are written that a model is made to write (`form`).

`families.py` is the table of all families; a new one is a row there, and a sample in the tests.
"""

from tidepipe_common.dialects.dialect import CallForm, Dialect, Reading
from tidepipe_common.dialects.families import (
    AUTO,
    OFF,
    check_reasoning_parser,
    dialect_for,
    dialect_named,
    names,
)
from tidepipe_common.dialects.parts import (
    CallArguments,
    CallBegins,
    CallEnds,
    Part,
    Reader,
    Thought,
    Words,
)
from tidepipe_common.dialects.whole import Call, Gathering, Spoken, read_whole

__all__ = [
    "AUTO",
    "OFF",
    "Call",
    "CallArguments",
    "CallBegins",
    "CallEnds",
    "CallForm",
    "Dialect",
    "Gathering",
    "Part",
    "Reader",
    "Reading",
    "Spoken",
    "Thought",
    "Words",
    "check_reasoning_parser",
    "dialect_for",
    "dialect_named",
    "names",
    "read_whole",
]
