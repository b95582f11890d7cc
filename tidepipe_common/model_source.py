"""Where a model lies: a folder, a GGUF file, a name in TidePipe's cache, or a hub id."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path

from platformdirs import user_cache_dir

from tidepipe_common.errors import ModelError
from tidepipe_common.model_files import is_there

CACHE_VARIABLE = "TIDEPIPE_CACHE"
"""Environment variable that moves TidePipe's cache folder."""

_SHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""Name of one file of a GGUF model that was split."""
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_HUB_PATTERNS = [
    "*.json",
    "*.safetensors",
    "tokenizer.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "*.jinja",
]


def cache_dir() -> Path:
    """TidePipe's cache folder (it need not exist)."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override).expanduser() if override else Path(user_cache_dir("tidepipe"))


def writable_cache_dir() -> Path:
    """The cache folder, or where nothing can be written there (a read-only home) one among temporary files.

    That one is the user's own, closed to others, and the same for all of the user's processes.
    OSError if there is none either.
    """
    folder = cache_dir()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    own = Path(tempfile.gettempdir()) / f"tidepipe-cache-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    found = own.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        # Somebody else was there first.
        own = Path(tempfile.mkdtemp(prefix="tidepipe-cache-"))
    return own


def model_cache_dir() -> Path:
    """Folder of the models that `tidepipe model pull` fetched."""
    return cache_dir() / "models"


def resolve_model(model: str, *, allow_download: bool = False) -> Path:
    """Find a model: a folder with config.json and *.safetensors, or a .gguf file.

    model: such a path, the name of a pulled model, or a hub id `org/name`, which is only looked for on
    this machine unless `allow_download`. Raises ModelError if there is none, or only pickled weights.
    """
    if not model:
        raise ModelError("no model given; name a folder, a .gguf file, a pulled model or a hub id org/name")
    try:
        path = Path(model).expanduser()
        if path.exists():
            return _checked(path)
        if _SHORT_NAME.fullmatch(model) and path.suffix not in _PICKLE_SUFFIXES:
            return _from_cache(model)
    except (OSError, RuntimeError) as error:  # no permission, a name too long, no such user's home
        raise ModelError(f"{model[:200]}: cannot be read ({getattr(error, 'strerror', error)})") from error
    if path.suffix in _PICKLE_SUFFIXES:
        raise ModelError(f"{model}: pickled weights are never loaded; use safetensors or GGUF")
    if _HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        return _from_hub(model, allow_download)
    raise ModelError(
        f"{model}: no such file or folder, and neither a pulled model's name nor a hub id org/name"
    )


def resolve_tokenizer(model: str, *, allow_download: bool = False) -> Path:
    """As `resolve_model`, for whoever needs no weights: a folder with tokenizer and config.json will do."""
    with contextlib.suppress(OSError, RuntimeError):
        folders = [Path(model).expanduser()] if model else []
        if _SHORT_NAME.fullmatch(model):
            folders.append(model_cache_dir() / model)
        for folder in folders:
            if (folder / "tokenizer.json").is_file() and (folder / "config.json").is_file():
                return folder
    return resolve_model(model, allow_download=allow_download)


def _checked(path: Path) -> Path:
    """Return `path`, or the one GGUF file in it, if it can be loaded."""
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        if path.suffix in _PICKLE_SUFFIXES:
            raise ModelError(f"{path}: pickled weights are never loaded; use safetensors or GGUF")
        raise ModelError(
            f"{path}: not a .gguf file; for safetensors give the folder that also has config.json"
        )
    if any(path.glob("*.safetensors")):
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise ModelError(
                f"{path}: a LoRA adapter, not a model; give its base as the model and --lora NAME={path}"
            )
        if is_there(path / "config.json"):
            return path
        raise ModelError(f"{path}: has *.safetensors but no config.json")
    # Of a split model, the first part speaks for all.
    gguf_files = sorted(file for file in path.glob("*.gguf") if _part_number(file) == 1)
    if len(gguf_files) == 1:
        return gguf_files[0]
    if gguf_files:
        names = ", ".join(file.name for file in gguf_files)
        raise ModelError(f"{path}: has several GGUF files, give one of them: {names}")
    if any(file.suffix in _PICKLE_SUFFIXES for file in path.iterdir()):
        raise ModelError(
            f"{path}: has only pickled weights, which are never loaded; convert them to safetensors "
            "(transformers: from_pretrained, then save_pretrained)"
        )
    if any(path.glob("*.gguf")):
        raise ModelError(f"{path}: has parts of a split GGUF model, but not the first one")
    if (path / "model.safetensors.index.json").is_file():
        raise ModelError(f"{path}: has an index of weights but not the *.safetensors that it names")
    raise ModelError(f"{path}: has neither *.safetensors nor a .gguf file")


def _part_number(file: Path) -> int:
    match = SPLIT_NAME.fullmatch(file.name)
    return int(match["number"]) if match else 1


def _from_cache(name: str) -> Path:
    for candidate in (model_cache_dir() / name, model_cache_dir() / f"{name}.gguf"):
        if candidate.exists():
            return _checked(candidate)
    raise ModelError(
        f"{name}: no such file or folder here, and no pulled model of this name in {model_cache_dir()}; "
        "fetch the example model with `tidepipe model pull smollm2-135m`"
    )


def _from_hub(hub_id: str, allow_download: bool) -> Path:
    # Imported late: only a hub id needs it, and every stage worker resolves a model when it starts.
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(hub_id, local_files_only=not allow_download, allow_patterns=_HUB_PATTERNS)
    except (OSError, ValueError) as error:
        # The library's own errors derive from these two (network, missing repository, nothing local).
        if not allow_download:
            raise ModelError(
                f"{hub_id}: not in this machine's hub cache, and downloading is off; give --allow-download "
                "(of `tidepipe up` and `batch`), or a local path"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{hub_id}: the model hub did not give it ({reason})") from error
    return _checked(Path(folder))
