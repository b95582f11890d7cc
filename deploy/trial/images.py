"""Images without a registry: base images from Debian's packages, wheels from the package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.requirements import requirements
from deploy.trial.engine import Engine

ROOT = Path(__file__).parents[2]
WHEELHOUSE = ROOT / "deploy" / "wheelhouse"
PACKAGES = "python3,python3-pip,ca-certificates"
# The names of the official images: an ordinary Dockerfile builds on these unchanged.
SLIM = "python:3.11-slim-bookworm"
FULL = "python:3.11-bookworm"
_NOT_NEEDED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


def make_base_images(engine: Engine, cache: Path) -> None:
    """Import stand-ins of the two official Python images; their archives are kept in `cache`."""
    for name, packages in ((SLIM, PACKAGES), (FULL, f"{PACKAGES},gcc,libc6-dev")):
        archive = cache / f"{name.replace(':', '-')}.tar"
        if not archive.exists():
            _bootstrap(archive, packages)
        engine.docker("import", str(archive), name)


def fill_wheelhouse() -> None:
    """Download the wheels that the images install, for builds without a network."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += [
        "--dest",
        str(WHEELHOUSE),
        "--find-links",
        str(WHEELHOUSE),
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run([*command, *requirements(frozenset())], check=True, timeout=900)


def build_images(engine: Engine) -> None:
    """Build `tidepipe-service` and `tidepipe-worker`."""
    offline = ["--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheelhouse"]
    for target in ("service", "worker"):
        command = ["docker", "build", "-q", "-f", "deploy/Dockerfile", "--target", target, *offline]
        engine.run([*command, "-t", f"tidepipe-{target}", "."], cwd=ROOT, timeout=1500)


def _bootstrap(archive: Path, packages: str) -> None:
    root = archive.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    archive.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)],
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
