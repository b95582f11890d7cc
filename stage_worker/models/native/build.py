"""The build of the C kernels: compiled at first use, and kept in TidePipe's cache folder.

A machine without a compiler, such as a container, can be given a folder of kernels that `prebuild` made, in
the environment variable TIDEPIPE_KERNELS.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from tidepipe_common.model_source import CACHE_VARIABLE, writable_cache_dir
from tidepipe_common.security.trusted_files import UntrustedError, private_folder, trusted

# Headers are sections of one unit, each included once, where all that it needs stands above it: some in the
# midst of another one.
_SOURCES = (
    "kernels.c",
    *(
        f"{name}.h"
        for name in ("native", "tile", "bytes", "wide_tile", "wide_tile_avx2", "packed", "blocked")
    ),
    *(f"{name}.h" for name in ("matrix_tiles", "product", "rows", "store")),
    *(f"attention{name}.h" for name in ("_item", "_bytes", "_wide", "_tiles", "")),
    *(f"{name}.h" for name in ("adapters", "layers")),
)
_FLAGS = ("-O3", "-shared", "-fPIC", "-fno-strict-aliasing", "-fno-math-errno", "-Wno-psabi")
_COMPILERS = ("cc", "gcc", "clang")
_TIMEOUT_S = 300.0
PREBUILT_VARIABLE = "TIDEPIPE_KERNELS"
_FOLDER = Path(__file__).parent

_log = structlog.get_logger()


class BuildError(Exception):
    """The kernels cannot be compiled here; says why."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The kernels for one kind of CPU. needs: flags of /proc/cpuinfo.

    dot: bfloat16 dot products. vnni: int8 dot products. tiles: matrix tiles of both.
    """

    name: str
    lanes: int
    needs: frozenset[str]
    options: tuple[str, ...]
    dot: bool = False
    vnni: bool = False
    tiles: bool = False


_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
_AVX2_OPTIONS = ("-mavx2", "-mfma")
_AVX512_OPTIONS = (*_AVX2_OPTIONS, *(f"-m{name}" for name in _AVX512))

_DOTS = frozenset({"avx2", "fma", *_AVX512, "avx512_bf16", "avx512_vnni"})
_DOTS_OPTIONS = (*_AVX512_OPTIONS, "-mavx512bf16", "-mavx512vnni")

VARIANTS = (
    Variant(
        "amx",
        lanes=16,
        needs=_DOTS | {"amx_tile", "amx_bf16", "amx_int8"},
        options=(*_DOTS_OPTIONS, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
        dot=True,
        vnni=True,
        tiles=True,
    ),
    Variant(
        "avx512bf16",
        lanes=16,
        needs=_DOTS,
        options=_DOTS_OPTIONS,
        dot=True,
        vnni=True,
    ),
    Variant(
        "avx512vnni",
        lanes=16,
        needs=frozenset({"avx2", "fma", *_AVX512, "avx512_vnni"}),
        options=(*_AVX512_OPTIONS, "-mavx512vnni"),
        vnni=True,
    ),
    Variant("avx512", lanes=16, needs=frozenset({"avx2", "fma", *_AVX512}), options=_AVX512_OPTIONS),
    Variant("avx2", lanes=8, needs=frozenset({"avx2", "fma"}), options=_AVX2_OPTIONS),
    Variant("plain", lanes=4, needs=frozenset(), options=()),
)
"""Best first."""


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU, in the words of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def usable_variants(*, bfloat16: bool) -> list[Variant]:
    """The variants that this CPU can run, best first."""
    flags = cpu_flags()
    return [
        variant
        for variant in VARIANTS
        if variant.needs <= flags
        and (bfloat16 or not variant.dot)
        and (not variant.tiles or _tiles_granted())
    ]


@functools.cache
def _tiles_granted() -> bool:
    """True if the system lets this process use matrix tiles; Linux wants to be asked."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def compiled(variant: Variant, *, bfloat16: bool) -> bytes:
    """Path of the shared object for a variant and data type, as bytes for the loader; compiled if need be.

    Any number of processes may ask at once: one compiles, the others wait for it. It is code: what another
    user could have written is not loaded (`tidepipe_common.security.trusted_files`).
    Raises BuildError if there is no compiler, or it fails.
    """
    source = Source.of(variant, bfloat16=bfloat16)
    prebuilt = os.environ.get(PREBUILT_VARIABLE)
    if prebuilt and (path := Path(prebuilt) / source.file_name()).exists():
        try:
            return os.fsencode(trusted(path))
        except UntrustedError as error:
            raise BuildError(f"the kernels of {PREBUILT_VARIABLE} are not safe to load ({error})") from error
    compiler = _compiler()
    name = source.file_name(_version(compiler))
    try:
        cache = private_folder(writable_cache_dir() / "native")
        target = cache / name
        if not _is_ours(target):
            lock = os.open(
                cache / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_ours(target):
                    source.compile(compiler, target)
            finally:
                os.close(lock)
    except UntrustedError as error:
        raise BuildError(f"the cache folder is not safe to load code from ({error})") from error
    except OSError as error:
        raise BuildError(
            f"the cache folder cannot be written ({error}); set {CACHE_VARIABLE} to one that can"
        ) from error
    return os.fsencode(target)


@dataclass(frozen=True, slots=True)
class Source:
    """What a shared object is made of. label: variant and data type. digest: of the sources and options."""

    label: str
    options: tuple[str, ...]
    digest: bytes

    @classmethod
    def of(cls, variant: Variant, *, bfloat16: bool) -> Source:
        """The source of a variant; BuildError if files are missing."""
        options = (
            *_FLAGS,
            *variant.options,
            f"-DBF16={int(bfloat16)}",
            f"-DDOT={int(variant.dot)}",
            f"-DVNNI={int(variant.vnni)}",
            f"-DAMX={int(variant.tiles)}",
            f"-DLANES={variant.lanes}",
        )
        try:
            files = [(_FOLDER / name).read_bytes() for name in _SOURCES]
        except OSError as error:
            raise BuildError(f"the kernels' sources are missing ({error.filename})") from error
        digest = _digest(*files, " ".join(options).encode(), platform.machine().encode())
        return cls(f"{variant.name}-{'bf16' if bfloat16 else 'float'}", options, digest)

    def file_name(self, compiler_version: bytes = b"") -> str:
        """Name of the shared object; with the compiler's version where one may change under us."""
        digest = _digest(self.digest, compiler_version).hex()
        return f"kernels-{self.label}-{digest[:20]}.so"

    def compile(self, compiler: str, target: Path, mode: int = 0o700) -> None:
        """Compile to a file of its own and move it into place, so that nobody ever loads half a file."""
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix="building-", suffix=".so", delete=False
        ) as file:
            temporary = Path(file.name)
        try:
            result = subprocess.run(
                [compiler, *self.options, str(_FOLDER / _SOURCES[0]), "-o", str(temporary)],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
            if result.returncode:
                reason = next(
                    (line for line in result.stderr.splitlines() if "error" in line), result.stderr[:200]
                )
                raise BuildError(f"{compiler} failed: {reason.strip()}")
            temporary.chmod(mode)
            temporary.replace(target)
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{compiler} took longer than {_TIMEOUT_S:.0f} s") from error
        finally:
            temporary.unlink(missing_ok=True)


def prebuild(folder: Path) -> list[Path]:
    """Compile every variant for every data type into `folder`, for machines without a compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    compiler = _compiler()
    sources = [
        Source.of(variant, bfloat16=bfloat16)
        for variant in VARIANTS
        for bfloat16 in ((False, True) if not variant.dot else (True,))
    ]

    def make(source: Source) -> Path:
        target = folder / source.file_name()
        source.compile(compiler, target, 0o755)  # for whoever runs there
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a compiler
        return list(pool.map(make, sources))


def _is_ours(target: Path) -> bool:
    """True if the shared object is there, and nobody else can have written it; else it is made anew."""
    if target.is_symlink() or not target.exists():
        return False
    try:
        trusted(target)
    except UntrustedError as error:
        _log.warning("a kernel of another user is not loaded, but compiled anew", reason=str(error))
        return False
    return True


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _compiler() -> str:
    wanted = os.environ.get("CC")
    for name in (wanted,) if wanted else _COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    raise BuildError(f"no C compiler found ({wanted or ', '.join(_COMPILERS)}); install one, such as gcc")


def _version(compiler: str) -> bytes:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} does not run ({error})") from error
