"""Images without a registry: base images from Debian's packages, wheels from the package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from deploy.requirements import requirements
from deploy.trial.engine import Engine

ROOT = Path(__file__).parents[2]
WHEELHOUSE = ROOT / "deploy" / "wheelhouse"
PACKAGES = "python3,python3-pip,ca-certificates"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
_NOT_NEEDED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


@dataclass(frozen=True, slots=True)
class Base:
    """A release of Debian, and its own Python: stand-ins for the official images of the Dockerfile.

    torch_alone: PyTorch needs nothing that the locks do not name, as its build for CPUs does. Where an index
    has its CUDA build only for this Python, that brings several gigabytes along.
    """

    suite: str
    python: str
    torch_alone: bool

    @property
    def slim(self) -> str:
        """Name of the image that services run on."""
        return f"python:{self.python}-slim-{self.suite}"

    @property
    def full(self) -> str:
        """Name of the image with a compiler."""
        return f"python:{self.python}-{self.suite}"


BASES = {"oldest": Base("bookworm", "3.11", True), "newest": Base("trixie", "3.13", False)}


def make_base_images(engine: Engine, cache: Path, base: Base) -> None:
    """Import stand-ins of the two official Python images; their archives are kept in `cache`."""
    for name, packages in ((base.slim, PACKAGES), (base.full, f"{PACKAGES},gcc,libc6-dev,libgomp1")):
        archive = cache / f"{name.replace(':', '-')}.tar"
        if not archive.exists():
            _bootstrap(archive, base.suite, packages)
        engine.docker("import", str(archive), name)


def fill_wheelhouse(base: Base) -> None:
    """Download the wheels that the images install, for builds without a network."""
    into = ["--dest", str(WHEELHOUSE), "--find-links", str(WHEELHOUSE)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *into]
    command += ["--python-version", base.python, "--only-binary", ":all:"]
    locks = [part for name in ("service", "worker") for part in ("-r", str(ROOT / "locks" / f"{name}.txt"))]
    subprocess.run([*command, "--require-hashes", *locks], check=True, timeout=900)
    torch = requirements(lambda name: name == "torch")
    subprocess.run([*command, *(["--no-deps"] if base.torch_alone else []), *torch], check=True, timeout=900)


def build_images(engine: Engine, base: Base) -> None:
    """Build `tidepipe-service` and `tidepipe-worker`."""
    arguments = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/wheelhouse",
        "PYTHON_IMAGE": base.slim,
        "BUILD_IMAGE": base.full,
        "TIDEPIPE_VERSION": VERSION,
    }
    offline = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    for target in ("service", "worker"):
        command = ["docker", "build", "-q", "-f", "deploy/Dockerfile", "--target", target, *offline]
        engine.run([*command, "-t", f"tidepipe-{target}:{VERSION}", "."], cwd=ROOT, timeout=1500)


def _bootstrap(archive: Path, suite: str, packages: str) -> None:
    root = archive.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    archive.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(root)],
            check=True,
            timeout=900,
            stdout=subprocess.DEVNULL,
        )
        for folder in _NOT_NEEDED:
            shutil.rmtree(root / folder, ignore_errors=True)
        # The official images let pip install, and have Python in /usr/local.
        for marker in (root / "usr/lib").glob("python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        for name in ("python", "python3"):
            (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3")
        partial = archive.with_suffix(".partial")
        subprocess.run(["tar", "-C", str(root), "-cf", str(partial), "."], check=True, timeout=300)
        os.replace(partial, archive)  # noqa: PTH105
    finally:
        shutil.rmtree(root, ignore_errors=True)
