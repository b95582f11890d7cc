"""Benchmarks in parts, each in a file of its own as soon as it is done: a stop loses one part at most.

The same command goes on where it was. A part is taken from its file only if it was made with the same
settings by the same code, so that no table ever mixes two versions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
_ROOT = Path(__file__).resolve().parent.parent
_CODE = (
    "bench/offline_cells.py",
    "tidepipe_common/latency",
    "controller/scheduler",
    "simulator",
    "workloads",
)


@cache
def code_version() -> str:
    """Digest of all code that decides a simulation's figures."""
    digest = hashlib.sha256()
    for place in _CODE:
        path = _ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Parts:
    """The parts of one benchmark in one folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """settings: whatever the figures depend on besides the part's name."""
        self._folder = folder
        self._made_with = {**settings, "code": code_version()}
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, work: Mapping[str, Callable[[], Figures]], jobs: int) -> dict[str, Figures]:
        """All parts by name; those that are missing are computed in so many processes (so: picklable)."""
        done = {name: found for name in work if (found := self._read(name)) is not None}
        with ProcessPoolExecutor(jobs) as pool:
            started = {name: pool.submit(task) for name, task in work.items() if name not in done}
            for name, future in started.items():
                done[name] = future.result()
                self._write(name, done[name])
                print(f"{len(done)} of {len(work)}: {name}", flush=True)
        return {name: done[name] for name in work}

    def _path(self, name: str) -> Path:
        return self._folder / (re.sub(r"[^a-z0-9.]+", "-", name.lower()) + ".json")

    def _read(self, name: str) -> Figures | None:
        path = self._path(name)
        if not path.exists():
            return None
        part = json.loads(path.read_text())
        return part["figures"] if part["made_with"] == self._made_with else None

    def _write(self, name: str, figures: Figures) -> None:
        path = self._path(name)
        half = path.with_suffix(".part")
        half.write_text(json.dumps({"made_with": self._made_with, "figures": figures}, indent=1))
        half.rename(path)
