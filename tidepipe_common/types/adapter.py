"""An adapter (LoRA) of a model, as services tell each other of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

FINGERPRINT_DIGITS = 32
_FINGERPRINT = re.compile(f"[0-9a-f]{{{FINGERPRINT_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class Adapter:
    """name: by which requests ask for it. fingerprint: of its content, by which services speak of it: two
    contents under one name, one after the other, never share what was computed with either.
    """

    name: str
    fingerprint: str


def is_fingerprint(text: str) -> bool:
    """Is it one, in form?"""
    return _FINGERPRINT.fullmatch(text) is not None
