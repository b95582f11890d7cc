"""What is known of a model of the library: its dimensions, or why it cannot be run.

Found out once, in a process of its own that ends within bounds, and kept in the cache folder: by the
configuration, and the versions of what computes it. This module imports neither PyTorch nor the library.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import stage_worker
from stage_worker.models.spec import ModelSpec, RopeSpec
from tidepipe_common.errors import ConfigError, ModelError
from tidepipe_common.extras import SERVER, require
from tidepipe_common.model_source import writable_cache_dir
from tidepipe_common.security.trusted_files import private_folder, trusted

MOST_CPU_S = 120
TIMEOUT_S = 300
"""Of a trial on a machine that others keep busy."""
MOST_BYTES = 16 << 30
"""Address space of the process, much of which PyTorch only reserves."""
_CODE = ("transformers_code", "attention", "loading")
"""Packages whose code a result depends on."""
_NOT_COMPUTED = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "auto_map")


@dataclass(frozen=True, slots=True)
class Examination:
    """spec: without ends of outputs, which lie in other files; None for what cannot be run.

    reason: why it cannot be run, in words for the user.
    """

    spec: ModelSpec | None
    reason: str = ""


def examine(config: Mapping[str, Any]) -> Examination:
    """What is known of the model of a config.json; tried out now if nothing is known yet."""
    require(SERVER, "running a model by the transformers library's code")
    kept = _kept_file(config)
    found = None if kept is None else _read(kept)
    if found is not None:
        return found
    with _alone(kept):
        # Somebody else may have tried it meanwhile: the stages of a model start together.
        found = None if kept is None else _read(kept)
        if found is not None:
            return found
        text = _tried(config)
        found = _parsed(text)
        if found is None:
            raise ModelError(f"the trial of {config.get('model_type')!r} ended without a result")
        if kept is not None:
            _keep(kept, text)
    return found


@contextlib.contextmanager
def _alone(kept: Path | None) -> Iterator[None]:
    """One trial of a configuration at a time, if there is a place for a lock."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            if kept is not None:
                lock = held.enter_context(kept.with_suffix(".lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def told(examination: Examination) -> str:
    """As text, which `examine` reads."""
    return json.dumps(asdict(examination))


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    names = ("transformers", "torch")
    return {name: importlib.metadata.version(name) for name in names} | {"code": _code()}


@functools.cache
def _code() -> str:
    """A digest of what tries models out."""
    digest = hashlib.sha256()
    for package in _CODE:
        for file in sorted((Path(stage_worker.__file__).parent / package).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _kept_file(config: Mapping[str, Any]) -> Path | None:
    values = {key: value for key, value in config.items() if key not in _NOT_COMPUTED}
    words = json.dumps([values, versions()], sort_keys=True)
    name = f"{hashlib.sha256(words.encode()).hexdigest()[:40]}.json"
    try:
        return private_folder(writable_cache_dir() / "architectures") / name
    except OSError:
        return None


def _read(file: Path) -> Examination | None:
    try:
        return _parsed(trusted(file).read_text())
    except OSError:
        return None


def _keep(file: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "w") as out:
            out.write(text)
        Path(name).replace(file)


def _parsed(text: str) -> Examination | None:
    try:
        value = json.loads(text)
        spec = value["spec"]
        if spec is not None:
            spec["rope"] = RopeSpec(**{**spec["rope"], "frequency_divisors": ()})
            for name in ("sliding_windows", "rope_layers", "eos_token_ids"):
                spec[name] = tuple(spec[name])
        return Examination(None if spec is None else ModelSpec(**spec), str(value["reason"]))
    except (ValueError, KeyError, TypeError):
        return None


def _tried(config: Mapping[str, Any]) -> str:
    package = str(Path(stage_worker.__file__).resolve().parent.parent)
    path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "stage_worker.transformers_code"],
            input=json.dumps(dict(config)),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"the trial of {config.get('model_type')!r} took more than {TIMEOUT_S} s") from error
    except OSError as error:
        raise ConfigError(f"no process for the trial of a model ({error})") from error
    if done.returncode == -signal.SIGPROF:
        raise ModelError(
            f"the trial of {config.get('model_type')!r} took more than {MOST_CPU_S} s of processor time"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
        raise ModelError(f"the trial of {config.get('model_type')!r} failed: {last}")
    return done.stdout
