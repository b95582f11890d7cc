"""Child processes of a run: pinned to cores, waited for, and always ended."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
RUN_S = 1800.0
"""Longer than any peer takes for a workload."""
MANY_DESCRIPTORS = 500
"""Number of a descriptor that nobody has reached, and an allowed one everywhere."""


class PeerError(Exception):
    """A peer did not do what it should; says what, and where its output is."""


@contextmanager
def child(
    command: Sequence[object], log: Path, *, env: Mapping[str, str] | None = None, pipes: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A process and all that it starts, ended when the block is left. log: gets what it says.

    Both ends have room for many connections: a table of descriptors that grows waits for a quiet moment of
    each processor (RCU), and `accept` with it, for seconds where others are kept from their turn.
    """
    with log.open("w") as out:
        room = fcntl.fcntl(out, fcntl.F_DUPFD, MANY_DESCRIPTORS)
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else out,
            stderr=out,
            text=True,
            start_new_session=True,
            pass_fds=(room,),
        )
    try:
        yield process
    finally:
        os.close(room)
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(10.0)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait()


class Script:
    """A script that says `ready`, waits for a line, and answers with one line of JSON."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def wait_ready(self) -> None:
        """Return when it is ready; PeerError if it ends first."""
        while (line := self._line()) != "ready":
            self._note(line)

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> Figures:
        """What it measured; PeerError if it ends without."""
        while not (line := self._line()).startswith("{"):
            self._note(line)
        figures: Figures = json.loads(line)
        return figures

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self._process.args!r} ended; see {self._log}")
        return line.strip()

    def _note(self, line: str) -> None:
        with self._log.open("a") as out:
            out.write(f"{line}\n")


def end_children_when_ended() -> None:
    """From now on SIGTERM leaves every `child` that is open, so that nothing outlives this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def total(parts: Sequence[Figures]) -> Figures:
    """Figures of several processes that began together, as of one."""
    return {
        "seconds": max(part["seconds"] for part in parts),
        **{name: sum(part[name] for part in parts) for name in ("prompt_tokens", "output_tokens", "short")},
    }


def wait_until(what: str, ready: Any, process: subprocess.Popen[str], seconds: float = 300.0) -> None:
    """Poll until ready(); PeerError if the process ends first or time is over."""
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise PeerError(f"{what} did not come up (exit code {process.poll()})")
        time.sleep(0.2)
