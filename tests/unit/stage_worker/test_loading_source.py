"""Finding a model by path, by the name it was pulled under, or by its hub id."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tidepipe_common.errors import ModelError
from tidepipe_common.model_source import cache_dir, model_cache_dir, resolve_model, writable_cache_dir


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    return path


def test_folder_and_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", "config.json", "model.safetensors")
    assert resolve_model(str(path)) == path
    file = folder(tmp_path / "g", "x.gguf") / "x.gguf"
    assert resolve_model(str(file)) == file
    assert resolve_model(str(file.parent)) == file


def test_pulled_model() -> None:
    assert cache_dir().name == "cache"
    pulled = folder(model_cache_dir() / "small", "config.json", "model.safetensors")
    assert resolve_model("small") == pulled
    (model_cache_dir() / "other.gguf").touch()
    assert resolve_model("other") == model_cache_dir() / "other.gguf"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", "no model given"),
        ("nothing", "tidepipe model pull smollm2-135m"),
        ("org/nothing", "downloading is off"),
        ("some/where/else", "no such file or folder"),
        ("../x", "no such file or folder"),
        ("weights.bin", "pickled weights are never loaded"),
        ("x" * 5000, "cannot be read"),
        ("~nobody-of-this-name/model", "cannot be read"),
    ],
)
def test_nothing_there(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(model)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.safetensors"], "no config.json"),
        (["config.json"], "neither"),
        (["config.json", "pytorch_model.bin"], "only pickled weights"),
        (["a.gguf", "b.gguf"], r"several GGUF files, give one of them: a\.gguf, b\.gguf"),
    ],
)
def test_folders_that_cannot_be_loaded(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(str(folder(tmp_path / "m", *names)))


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", "model.safetensors", "model.pt")
    with pytest.raises(ModelError, match="give the folder"):
        resolve_model(str(path / "model.safetensors"))
    with pytest.raises(ModelError, match="pickled"):
        resolve_model(str(path / "model.pt"))


def test_a_cache_that_cannot_be_written_gives_way_to_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert writable_cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("TIDEPIPE_CACHE", "/proc/none")
    own = writable_cache_dir()
    assert own == writable_cache_dir() and own.parent == tmp_path
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)  # as somebody else would have made it
    other = writable_cache_dir()
    assert other != own and other.stat().st_mode & 0o777 == 0o700
