"""What is known of the library's language models: which of them run, and why others do not.

`survey.py` finds it out and writes architectures.json beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

FOUND = Path(__file__).with_name("architectures.json")


def found() -> tuple[str, dict[str, str]]:
    """The library's version, and for each architecture why it does not run; empty: it does."""
    known = json.loads(FOUND.read_text())
    return str(known["transformers"]), {str(name): str(why) for name, why in known["architectures"].items()}


def by_reason(architectures: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Those that do not run: (name, what is special about it), by the reason in general."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, why in sorted(architectures.items()):
        if why:
            reason, _, detail = why.partition(" (")
            groups.setdefault(reason, []).append((name, detail.removesuffix(")")))
    return dict(sorted(groups.items(), key=lambda one: -len(one[1])))
