"""A container engine of its own, in a network namespace of its own, so that the host is left as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

NEEDED = ("dockerd", "docker", "docker-compose", "nsenter", "ip", "iptables", "debootstrap")
START_S = 60.0
STOP_S = 30.0


class EngineUnavailableError(Exception):
    """No engine can be had here; says why and what to install."""


def check() -> None:
    """EngineUnavailableError unless an engine can be started on this machine."""
    if os.geteuid() != 0:
        raise EngineUnavailableError("the trial starts a container engine, for which it must be root")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise EngineUnavailableError(
            f"not installed: {', '.join(missing)}; on Debian: "
            "apt-get install --no-install-recommends docker.io docker-compose iptables debootstrap iproute2"
        )


class Engine:
    """A running engine. folder: where everything of it lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace = f"tidepipe-{os.getpid()}"
        self.socket = f"unix://{folder}/docker.sock"
        self.environment = {**os.environ, "DOCKER_HOST": self.socket, "DOCKER_BUILDKIT": "0"}

    def docker(self, *arguments: str, timeout: float = 600) -> str:
        """Run a docker command; what it printed."""
        return self.run(["docker", *arguments], timeout=timeout)

    def run(self, command: Sequence[str], *, timeout: float = 600, cwd: Path | None = None) -> str:
        """Run a command that talks to the engine; its output. RuntimeError with the output if it fails."""
        result = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stdout[-2000:]}{result.stderr[-4000:]}")
        return result.stdout

    def inside(self, *command: str) -> list[str]:
        """The command, to be run where the published ports are."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]

    def process_of(self, container: str) -> int:
        """Process id, on the host, of a container's first process."""
        return int(self.docker("inspect", "-f", "{{.State.Pid}}", container))


@contextlib.contextmanager
def running_engine(folder: Path) -> Iterator[Engine]:
    """Start an engine; it and its namespace are gone afterwards."""
    engine = Engine(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["ip", "netns", "add", engine.namespace], check=True, timeout=10)
    except subprocess.SubprocessError as error:
        raise EngineUnavailableError(f"network namespaces cannot be made here: {error}") from error
    daemon: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(["ip", "-n", engine.namespace, "link", "set", "lo", "up"], check=True, timeout=10)
        with (folder / "dockerd.log").open("wb") as log:
            # Not `ip netns exec`, which mounts another /sys, where the engine looks for its control groups.
            daemon = subprocess.Popen(
                engine.inside(
                    "dockerd",
                    f"--data-root={folder}/data",
                    f"--exec-root={folder}/exec",
                    f"--host={engine.socket}",
                    f"--pidfile={folder}/dockerd.pid",
                ),
                stdout=log,
                stderr=log,
            )
        _wait_until_up(engine, daemon)
        yield engine
    finally:
        if daemon is not None:
            daemon.terminate()
            try:
                daemon.wait(STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        subprocess.run(["ip", "netns", "delete", engine.namespace], check=False, timeout=10)
        shutil.rmtree(folder / "data", ignore_errors=True)


def _wait_until_up(engine: Engine, daemon: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + START_S
    while time.monotonic() < limit:
        if daemon.poll() is not None:
            break
        with contextlib.suppress(RuntimeError):
            engine.docker("version")
            return
        time.sleep(0.3)
    tail = (engine.folder / "dockerd.log").read_text(errors="replace")[-600:]
    raise EngineUnavailableError(f"the container engine does not start here: {tail}")
