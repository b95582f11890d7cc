"""The compose deployment: brought up, asked, hurt, and taken down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.secrets import HOSTS, make_secrets
from deploy.trial.engine import Engine
from deploy.trial.images import ROOT

PROJECT = "tidepipe-trial"
URL = "https://127.0.0.1:8000"
GRPC = "127.0.0.1:7000"
READY_S = 300.0
HEALTH_INTERVAL = "3s"
"""Each of eight services that is restarted is waited for until its next check."""
PAUSE_TRIES = 5
SERVICES = HOSTS
CRASHED = '"crashed"'
"""What `run_service` logs when a service ends by an error that nobody foresaw."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one batch.

    same: answers equal to those of the run without faults. harmed: containers that the fault did not touch,
    and that restarted or logged a crash all the same.
    """

    fault: str
    requests: int
    failed: int
    same: int
    seconds: float
    errors: tuple[str, ...] = ()
    harmed: tuple[str, ...] = ()

    @property
    def well(self) -> bool:
        """True if nobody noticed the fault."""
        return not self.failed and self.same == self.requests and not self.harmed

    def show(self) -> None:
        """Print it."""
        print(
            f"{self.fault:28} {self.requests} requests, {self.failed} failed, "
            f"{self.same} answers as without faults, {self.seconds:.1f} s",
            *self.errors,
            *self.harmed,
            flush=True,
        )


class Deployment:
    """Containers of deploy/compose.yaml on an engine."""

    def __init__(self, engine: Engine, model: Path) -> None:
        self._engine = engine
        secrets = engine.folder / "secrets"
        self._client = {**os.environ, "TIDEPIPE_TLS_CA": str(secrets / "ca.pem")}
        self._client["TIDEPIPE_API_KEY"] = make_secrets(secrets)
        engine.environment["TIDEPIPE_MODEL_DIR"] = str(model)
        engine.environment["TIDEPIPE_SECRETS_DIR"] = str(secrets)
        engine.environment["TIDEPIPE_HEALTH_INTERVAL"] = HEALTH_INTERVAL

    def up(self) -> None:
        """Start everything; returns when the router is healthy, RuntimeError if it does not get there."""
        self._compose("up", "-d", "--no-build")
        self._until(lambda: self._health("router") == "healthy", "router")

    def down(self) -> None:
        """Stop and remove everything."""
        self._compose("down", "--volumes", "--timeout", "20")

    def starts(self) -> dict[str, str]:
        """When the process of each service began, as the engine tells it."""
        about = self._engine.docker("inspect", "-f", "{{.State.StartedAt}}", *map(self._container, SERVICES))
        return dict(zip(SERVICES, about.split(), strict=True))

    def python_version(self) -> str:
        """Of the containers."""
        return self._engine.docker("exec", self._container("router"), "python", "-V").strip()

    def crashes(self) -> dict[str, int]:
        """How often each service has logged that it broke down."""
        logs = {name: self._engine.docker("logs", self._container(name)) for name in SERVICES}
        return {name: sum(CRASHED in line for line in log.splitlines()) for name, log in logs.items()}

    def logs(self) -> str:
        """The end of all containers' logs."""
        return self._compose("logs", "--no-color", "--tail", "25")

    def crash(self, service: str) -> None:
        """SIGKILL to the service's process, as a crash: the restart policy applies."""
        os.kill(self._service_process(service), signal.SIGKILL)

    def restart(self, service: str) -> None:
        """Restart a service as an operator does, and wait until it is healthy."""
        if service == "router":
            before = self._service_children(service)
            self._engine.docker("kill", "-s", "HUP", self._container(service))
            self._until(lambda: before.isdisjoint(self._service_children(service)), service)
        else:
            self._compose("restart", service)
        self._until(lambda: self._health(service) == "healthy", service)

    def pause(self, service: str) -> None:
        """Freeze a container; tried again, for a busy kernel may not freeze all its threads in time."""
        for attempt in range(PAUSE_TRIES):
            try:
                self._engine.docker("pause", self._container(service))
            except RuntimeError:
                if attempt + 1 == PAUSE_TRIES:
                    raise
                time.sleep(0.5)
            else:
                return

    def resume(self, service: str) -> None:
        """Let it go on."""
        self._engine.docker("unpause", self._container(service))

    def cut(self, service: str, network: str) -> None:
        """Take a container off a network."""
        self._engine.docker("network", "disconnect", f"{PROJECT}_{network}", self._container(service))

    def heal(self, service: str, network: str) -> None:
        """Put it back, under its name."""
        self._engine.docker(
            "network", "connect", "--alias", service, f"{PROJECT}_{network}", self._container(service)
        )

    def start_load(self, out: Path, *options: str) -> subprocess.Popen[bytes]:
        """Begin a batch through the gateway, or what the options of `deploy.trial.load` say."""
        command = self._engine.inside(sys.executable, "-m", "deploy.trial.load", URL, str(out), *options)
        return subprocess.Popen(command, cwd=ROOT, env=self._client)

    def _service_process(self, service: str) -> int:
        """Process id, on the host, of the service itself: the child of the container's init."""
        first = self._engine.process_of(self._container(service))
        children = Path(f"/proc/{first}/task/{first}/children").read_text(encoding="ascii").split()
        return int(children[0]) if children else first

    def _service_children(self, service: str) -> set[int]:
        """Process ids, on the host, of what the service's process has started."""
        keeper = self._service_process(service)
        return set(map(int, Path(f"/proc/{keeper}/task/{keeper}/children").read_text("ascii").split()))

    def _until(self, reached: Callable[[], bool], service: str) -> None:
        limit = time.monotonic() + READY_S
        while not reached():
            if time.monotonic() > limit:
                raise RuntimeError(f"the {service} is not well after {READY_S:g} s:\n{self.logs()}")
            time.sleep(1)

    def _container(self, service: str) -> str:
        return f"{PROJECT}_{service}_1"

    def _health(self, service: str) -> str:
        state = json.loads(self._engine.docker("inspect", "-f", "{{json .State}}", self._container(service)))
        return str(state.get("Health", {}).get("Status", "none"))

    def _compose(self, *arguments: str) -> str:
        return self._engine.run(
            ["docker-compose", "-f", "deploy/compose.yaml", "-p", PROJECT, *arguments],
            cwd=ROOT,
            timeout=READY_S,
        )
