"""Where this machine keeps the profiles that it measured, so that clusters find them without being told."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from pathlib import Path

from tidepipe_common.model_source import cache_dir


@dataclass(frozen=True, slots=True)
class Measured:
    """What a profile holds for; settings as the user gives them. model: its path."""

    model: str
    device: str
    dtype: str
    quantization: str | None
    threads: int
    stages: int


def kept_profile(measured: Measured) -> Path:
    """The file, which may not be there yet."""
    digest = hashlib.sha256(repr(astuple(measured)).encode()).hexdigest()[:12]
    return cache_dir() / "profiles" / f"{Path(measured.model).stem}-{digest}.json"
