"""The models that a name alone stands for: those that can be pulled, and those that lie in the cache."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from tidepipe.models.catalog import find_model, known_models
from tidepipe_common.errors import ModelError
from tidepipe_common.model_source import model_cache_dir, resolve_model


@dataclass(frozen=True, slots=True)
class CachedModel:
    """path: where it lies, None if it does not. size: its bytes on disk. download: bytes to pull, 0 if
    it cannot be pulled. problem: why what lies there cannot be used."""

    name: str
    path: Path | None
    size: int
    download: int = 0
    licence: str = ""
    problem: str = ""


def cached_models() -> list[CachedModel]:
    """Those that can be pulled first, then what else is in the cache."""
    known = known_models()
    return [*map(_look, known), *(_look(name) for name in _found() if name not in known)]


def _found() -> list[str]:
    names = set()
    with contextlib.suppress(OSError):
        for path in model_cache_dir().iterdir():
            if not path.name.startswith(".") and (path.is_dir() or path.suffix == ".gguf"):
                names.add(path.name.removesuffix(".gguf"))
    return sorted(names)


def _look(name: str) -> CachedModel:
    download, licence = 0, ""
    if name in known_models():
        packaged = find_model(name)
        download, licence = packaged.wheel_bytes, packaged.licence
    places = [path for path in (model_cache_dir() / name, model_cache_dir() / f"{name}.gguf") if _is(path)]
    size = sum(map(_size, places))
    if not places:
        return CachedModel(name, None, 0, download, licence)
    try:
        return CachedModel(name, resolve_model(str(places[0])), size, download, licence)
    except ModelError as error:
        return CachedModel(name, places[0], size, download, licence, str(error))


def _is(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _size(path: Path) -> int:
    total = 0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total
